"""Factors that are a YaRN are exported as one, which plain transformers computes in every family that takes it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import families
import pytest
import torch
from families import build, logits, tokens
from test_huggingface import LENGTH, LENGTHS, TOKENIZER, same
from transformers import AutoModelForCausalLM

import longrope as lr
from longrope.engines.predict import extension_in_config
from longrope.errors import LongRopeError
from longrope.export.gguf.convert import refuse_model
from longrope.export.hf_config import config_fields, for_mode
from longrope.export.huggingface import export_huggingface
from longrope.formats.hf_config import extension_of_config
from longrope.formats.load_factors import load_extension, load_factors
from longrope.models.load import load
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme, yarn
from longrope.yarn_fit import betas

ROPE = Rope(dim=16, base=10000.0, original_length=64)


def searched(rope: Rope, attention: float = 1.1) -> Extension:
    """A YaRN with a band, a factor and an attention factor of its own."""
    first = min(1, rope.dim // 2 - 2)
    scaling = yarn(rope, LENGTH, factor=9.5, **betas(rope, first, max(rope.dim // 2 - 2, first + 1)))
    return Extension.of(rope, replace(scaling, attention_factor=attention, scheme="searched"))


@pytest.mark.parametrize("family", sorted(set(families.FAMILIES) - {"phi3"}))
def test_every_family_computes_it_in_plain_transformers(family: str, tmp_path: Path) -> None:
    model = build(family)
    extension = searched(Rope.of(model))
    held = export_huggingface(model, TOKENIZER, extension, tmp_path / "made")
    assert load_factors(tmp_path / "made") == held
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    scaling = config["rope_scaling"]
    assert (scaling["rope_type"], scaling["factor"], scaling["attention_factor"]) == ("yarn", 9.5, 1.1)
    assert "truncate" not in scaling
    assert not {"long_factor", "short_mscale"} & set(scaling)
    assert same(tmp_path / "made", model, held, LENGTHS)
    assert not same(tmp_path / "made", model, replace(held, short=Scaling.identity(held.rope)), LENGTHS[:1])


def test_exact_fields_of_a_llama() -> None:
    plain = families.config("llama").to_dict()
    made = config_fields(plain, for_mode(Extension.of(ROPE, scheme("yarn", ROPE, LENGTH)), "static"))
    full = {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 64,
        "attention_factor": pytest.approx(1.2079441541679836, rel=1e-12),
    }
    assert made["rope_scaling"] == full
    assert made["rope_parameters"] == {**full, "rope_theta": 10000.0}
    assert (made["max_position_embeddings"], made["original_max_position_embeddings"]) == (LENGTH, 64)


@pytest.mark.parametrize(
    ("family", "mode", "scaling"),
    [
        ("llama", "dual", scheme("yarn", ROPE, LENGTH)),  # two sets
        ("phi3", "static", replace(scheme("yarn", ROPE, LENGTH), attention_factor=(1.5) ** 0.5)),  # its config has none
        ("llama", "static", yarn(ROPE, LENGTH, truncate=False)),  # mlx-lm and llama.cpp would round it
        ("llama", "static", yarn(ROPE, LENGTH, factor=7.0)),  # vLLM would stop at 448 tokens
        ("llama", "static", scheme("mrrope_pro", ROPE, LENGTH)),
    ],
)
def test_other_factors_stay_longrope(family: str, mode: str, scaling: Scaling) -> None:
    fields = {"rope_parameters": None} if family == "phi3" else {}
    plain = families.config(family, **fields).to_dict()
    attention = scaling.attention_factor
    extension = Extension(ROPE, Scaling([1.0] * 8, attention_factor=attention), scaling, LENGTH)
    made = config_fields(plain, for_mode(extension, mode))
    assert made["rope_parameters"]["rope_type"] == "longrope"
    assert made["rope_parameters"]["long_factor"] == list(scaling.factors)


@pytest.mark.parametrize("attention", [1.1, 1 / 1.1])
def test_a_written_config_is_read_as_the_same_extension(attention: float) -> None:
    """By the check of exports and by the reader of config files, with L as it is and not L0 times the factor."""
    written = for_mode(searched(ROPE, attention), "static")
    made = config_fields(families.config("llama").to_dict(), written)
    for read in (extension_in_config(made), extension_of_config(made)):
        assert read.rope == written.rope
        assert read.length == LENGTH
        assert read.long.factors == pytest.approx(written.long.factors, rel=1e-9)
        assert read.long.attention_factor == read.short.attention_factor == attention
    without = {**made, "rope_scaling": None}  # as transformers 5 saves it
    assert extension_of_config(without).long.attention_factor == attention


def test_an_attention_factor_that_engines_disagree_about_is_still_refused() -> None:
    made = config_fields(families.config("llama").to_dict(), for_mode(searched(ROPE), "static"))
    made["rope_scaling"] = {**made["rope_scaling"], "attn_factor": 0.5}
    with pytest.raises(LongRopeError, match=r"attn_factor = 0.5: transformers ignores this field"):
        extension_of_config(made)


def test_applied_factors_are_saved_as_a_yarn_and_taken_out_again(tmp_path: Path) -> None:
    model = build("qwen3")
    extension = searched(Rope.of(model))
    before, x = logits(model, tokens(1, 100)), tokens(1, 100)
    lr.apply(model, extension)
    model.save_pretrained(tmp_path / "saved")
    applied = logits(model, x)
    assert model.config.rope_parameters["rope_type"] == "yarn"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert (logits(reloaded, x) - applied).abs().max() < 1e-4
    lr.detach(model)
    assert torch.equal(logits(model, x), before)
    assert model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.usefixtures("fresh_process")
def test_a_checkpoint_is_exported_again_from_a_fresh_process(tmp_path: Path) -> None:
    model = build("gemma2")
    held = export_huggingface(model, TOKENIZER, searched(Rope.of(model)), tmp_path / "first")
    again, tokenizer = load(str(tmp_path / "first"), dtype="float32")
    assert export_huggingface(again, tokenizer, load_extension(tmp_path / "first"), tmp_path / "second") == held
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("first", "second")]
    assert configs[0]["rope_scaling"] == configs[1]["rope_scaling"]


def test_on_a_checkpoint_that_carries_a_scaling_the_product_is_written(tmp_path: Path) -> None:
    """YaRN on YaRN is not a YaRN, PI on PI is neither; both stay exact as longrope."""
    model = build("llama")
    export_huggingface(model, TOKENIZER, searched(Rope.of(model)), tmp_path / "first")
    carrying, tokenizer = load(str(tmp_path / "first"), dtype="float32")
    rope = Rope.of(carrying)
    assert (rope.original_length, bool(rope.factors)) == (LENGTH, True)
    export_huggingface(carrying, tokenizer, Extension.of(rope, scheme("yarn", rope, 2048)), tmp_path / "second")
    scaling = json.loads((tmp_path / "second" / "config.json").read_text())["rope_scaling"]
    assert scaling["rope_type"] == "longrope"


def test_gguf_names_llama_cpps_options_for_architectures_that_factors_cannot_reach(tmp_path: Path) -> None:
    extension = for_mode(searched(ROPE), "static")
    expected = "-c 512 --rope-scaling yarn --rope-scale 9.5 --yarn-orig-ctx 64 --yarn-beta-fast"
    attention = r"--yarn-attn-factor 1 --override-kv qwen3\.rope\.scaling\.attn_factor=float:0\.8978"
    with pytest.raises(LongRopeError, match=rf"'qwen3'.*{expected}.*{attention}"):
        refuse_model(families.config("qwen3").to_dict(), extension)
    other = for_mode(Extension.of(ROPE, scheme("ntk", ROPE, LENGTH)), "static")
    with pytest.raises(LongRopeError, match=r"'qwen3'.*or search with the parametrization yarn"):
        refuse_model(families.config("qwen3").to_dict(), other)


def test_factors_on_a_yarn_leave_no_attention_factor_of_the_yarn_behind(tmp_path: Path) -> None:
    """SGLang and older vLLM multiply their formula by attn_factor, which the new scaling may not have."""
    model = build("llama")
    rope = Rope.of(model)
    usual = scheme("yarn", rope, LENGTH)
    lr.apply(model, replace(usual, attention_factor=1.0))
    assert model.config.rope_parameters["attn_factor"] < 1
    model.save_pretrained(tmp_path / "first")
    lr.apply(model, usual)
    assert "attn_factor" not in model.config.rope_parameters

    carrying = AutoModelForCausalLM.from_pretrained(tmp_path / "first").eval()
    lr.apply(carrying, scheme("yarn", Rope.of(carrying), 2048))
    carrying.save_pretrained(tmp_path / "second")
    assert load_extension(tmp_path / "second").length == 2048
