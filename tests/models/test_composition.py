"""Checkpoints that carry a rope scaling: new factors multiply theirs, and L0 is the length with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import L0, logits, tokens
from transformers import AutoModelForCausalLM, PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError
from longrope.evaluation.candidate import Candidate
from longrope.export.parity import check_parity
from longrope.export.registry import ExportOptions
from longrope.formats.lengths import set_original_length
from longrope.models.generation import generating
from longrope.models.patch import patch
from longrope.models.rotary_embedding import LongRoPE
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import SCHEMES, scheme

ORIGINAL = {"original_max_position_embeddings": L0}
GROWING = [1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 4.0, 4.5]
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"factor": 4.0, **ORIGINAL},
    "yarn": {"factor": 4.0, "beta_fast": 8.0, **ORIGINAL},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "longrope": {"short_factor": [1.0, 1.0, 1.0, 1.0, 1.05, 1.1, 1.2, 1.2], "long_factor": GROWING, **ORIGINAL},
    "longrope, one set": {"short_factor": GROWING, "long_factor": GROWING, "attention_factor": 1.1, **ORIGINAL},
}
LENGTH = 4 * L0  # that the scalings are for
LONGER = 4 * LENGTH
THETA = {"rope_theta": 1e4}


def scaled(name: str, family: str = "llama", **fields: Any) -> PreTrainedModel:
    parameters = {"rope_type": name.partition(",")[0], **THETA, **SCALINGS[name]}
    return families.build(family, rope_parameters=parameters, max_position_embeddings=LENGTH, **fields)


def total_by_transformers(model: PreTrainedModel, scaling: Scaling) -> PreTrainedModel:
    """The same weights with the product of both factors as transformers' own longrope, at every length."""
    rope = Rope.of(model)
    factors = [old * new for old, new in zip(rope.factors, scaling.factors, strict=True)]
    attention = rope.attention_factor * scaling.attention_factor
    parameters = {"rope_type": "longrope", **THETA, "short_factor": factors, "long_factor": factors, **ORIGINAL}
    parameters["attention_factor"] = attention
    made = families.build(
        model.config.model_type, rope_parameters=parameters, max_position_embeddings=LONGER, tie_word_embeddings=False
    )
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.parametrize("name", SCALINGS)
def test_the_rope_is_the_one_that_the_model_computes_with(name: str) -> None:
    model = scaled(name)
    rope = Rope.of(model)
    assert rope.original_length == LENGTH
    positions = torch.tensor([[3, 100, LENGTH - 1]])
    cos, sin = model.model.rotary_emb(torch.zeros(1, 3, 64), positions)
    phases = positions[0].numpy()[:, None] * rope.inv_freq
    np.testing.assert_allclose(cos[0, :, :8].numpy(), rope.attention_factor * np.cos(phases), atol=1e-4)
    np.testing.assert_allclose(sin[0, :, :8].numpy(), rope.attention_factor * np.sin(phases), atol=1e-4)


@pytest.mark.parametrize("name", SCALINGS)
def test_factors_of_1_leave_every_logit_as_it_was(name: str) -> None:
    model = scaled(name)
    rope = Rope.of(model)
    for ids in (tokens(2, L0), tokens(1, LENGTH)):
        before = logits(model, ids)
        with patch(model, Extension.of(rope, replace(Scaling.identity(rope), length=LONGER))):
            unchanged = logits(model, ids)
        if name == "longrope":  # the sets are chosen by us, for each row
            torch.testing.assert_close(unchanged, before, rtol=0, atol=2e-3)
        else:
            assert torch.equal(unchanged, before)


@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("kind", SCHEMES)
def test_factors_multiply_as_transformers_computes_the_product(name: str, kind: str) -> None:
    model = scaled(name)
    scaling = scheme(kind, Rope.of(model), LONGER)
    reference = total_by_transformers(model, scaling)
    ids = tokens(1, LONGER)
    with patch(model, scaling):
        torch.testing.assert_close(logits(model, ids), logits(reference, ids), rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["static", "dual"])
@pytest.mark.parametrize("name", SCALINGS)
def test_an_exported_checkpoint_computes_the_same_in_plain_transformers(name: str, mode: str, tmp_path: Path) -> None:
    model = scaled(name)
    rope = Rope.of(model)
    scaling = replace(scheme("ntk", rope, LONGER), attention_factor=1.0 if mode == "dual" else 1.2)
    held = lr.export(model, families.tokenizer(), scaling, tmp_path / "made", mode=mode)
    assert held == Extension.of(rope, scaling).total if mode == "dual" else held.short == held.long
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    beyond = tokens(1, LENGTH + 50)
    with patch(model, scaling):
        torch.testing.assert_close(logits(plain, beyond), logits(model, beyond), rtol=0, atol=2e-3)
    within = tokens(1, L0)
    with patch(model, scaling if mode == "static" else None):
        torch.testing.assert_close(logits(plain, within), logits(model, within), rtol=0, atol=2e-3)


@pytest.mark.parametrize("mode", ["static", "dual"])
@pytest.mark.parametrize("name", SCALINGS)
def test_an_export_is_compared_with_the_model_that_carries_a_scaling(name: str, mode: str, tmp_path: Path) -> None:
    model = scaled(name)
    rope = Rope.of(model)
    scaling = replace(scheme("ntk", rope, LONGER), attention_factor=1.0 if mode == "dual" else 1.2)
    lr.export(model, families.tokenizer(), scaling, tmp_path / "made", mode=mode)
    assert [parity.ok for parity in check_parity(tmp_path / "made", model)] == [True] * 4
    path = tmp_path / "made" / "extension.json"
    held = Extension.from_json(path.read_text())
    path.write_text(replace(held, long=held.long.times([1.5] * 8)).to_json())
    assert not all(parity.ok for parity in check_parity(tmp_path / "made", model))
    other = families.build("llama", rope_parameters={**model.config.rope_parameters, "rope_theta": 5e5})
    with pytest.raises(LongRopeError, match=r"extension\.rope = .*Give the model of the checkpoint"):
        check_parity(tmp_path / "made", other)


def test_a_checkpoint_of_two_sets_keeps_its_short_one_up_to_its_own_length() -> None:
    model = scaled("longrope")
    rope = Rope.of(model)
    extension = Extension.of(rope, scheme("yarn", rope, LONGER))
    for length, same in ((L0, True), (L0 + 1, True), (LENGTH, True), (LENGTH + 1, False)):
        ids = tokens(1, length)
        before = logits(model, ids)
        with patch(model, extension):
            difference = (logits(model, ids) - before).abs().max()
        assert bool(difference < 2e-3) == same, length
    mixed = tokens(2, LENGTH + 1)
    padding = torch.ones_like(mixed)
    padding[0, : LENGTH + 1 - L0] = 0
    with generating(model, extension):
        both = model.generate(mixed, attention_mask=padding, max_new_tokens=3, do_sample=False, pad_token_id=0)
        alone = model.generate(mixed[:1, LENGTH + 1 - L0 :], max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert torch.equal(both[0, -3:], alone[0, -3:])


FAMILIES = ("qwen2", "gemma2", "stablelm", "gpt_neox", "olmo3")


@pytest.mark.parametrize(
    ("family", "name"),
    [*((family, name) for family in FAMILIES for name in ("yarn", "longrope")), ("phi3", "longrope")],
)
def test_other_families(name: str, family: str, tmp_path: Path) -> None:
    fields = {"rope_type": name, **THETA, **SCALINGS[name]}
    dim = Rope.of(families.config(family)).dim
    for key in ("short_factor", "long_factor"):
        if key in fields:
            fields[key] = np.interp(np.arange(dim // 2), np.arange(8), fields[key]).tolist()
    parameters: dict[str, Any] = fields | {"partial_rotary_factor": dim / 16} if dim != 16 else fields
    if family == "olmo3":
        parameters = {"full_attention": parameters, "sliding_attention": {"rope_type": "default", **THETA}}
    longest = {"max_position_embeddings": LENGTH, **(ORIGINAL if family == "phi3" else {})}
    model = families.build(family, rope_parameters=parameters, **longest)
    rope = Rope.of(model)
    assert rope.original_length == LENGTH
    extension = Extension.of(rope, replace(scheme("ntk", rope, LONGER), attention_factor=attention(family, rope)))
    lr.export(model, families.tokenizer(), extension, tmp_path / "made")  # which compares the logits
    assert Rope.of(AutoModelForCausalLM.from_pretrained(tmp_path / "made")).original_length == LONGER


def attention(family: str, rope: Rope) -> float:
    """Phi-3's config has room for the formula's factor only."""
    own = Rope(rope.dim, rope.base, rope.short_length or rope.original_length)
    return scheme("ramp", own, LONGER).attention_factor / rope.attention_factor if family == "phi3" else 1.0


def test_the_user_decides_the_length_of_a_scaled_checkpoint(tmp_path: Path) -> None:
    scaled("yarn").save_pretrained(tmp_path)
    families.tokenizer().save_pretrained(tmp_path)
    model, tokenizer = lr.load(str(tmp_path), original_length=128)
    rope = Rope.of(model)
    assert rope == replace(Rope.of(scaled("yarn")), original_length=128)
    options = ExportOptions(original_length=128)
    scaling = scheme("pi", rope, 512)
    held = lr.export(str(tmp_path), None, scaling, tmp_path / "made", options=options)
    assert held == lr.export(model, tokenizer, scaling, tmp_path / "again")
    assert held.rope.original_length == 128
    assert "longrope" not in (tmp_path / "made" / "config.json").read_text().replace('"longrope"', "")


def test_what_does_not_belong_to_a_scaled_checkpoint_is_refused(tmp_path: Path) -> None:
    model = scaled("longrope")
    rope = Rope.of(model)
    short = Scaling([2.0] * 8, length=LENGTH)
    for factors, message in (
        (short, f"length = {LENGTH}: the model's checkpoint carries a rope scaling for {LENGTH} tokens already"),
        (Extension.of(Rope(16, 1e4, L0), Scaling([2.0] * 8, length=LONGER)), "its checkpoint carries a rope scaling"),
    ):
        with pytest.raises(LongRopeError, match=message), patch(model, factors):
            pass
    set_original_length(model.config, 32)
    with pytest.raises(LongRopeError, match=r"original_length = 32: the checkpoint's short factors .* up to 64 tokens"):
        Rope.of(model.config)
    del model.config.longrope_original_length
    recovered = Extension(rope, short=Scaling([1.5] * 8), long=scheme("pi", rope, LONGER), length=LONGER)
    assert lr.export(model, families.tokenizer(), recovered, tmp_path / "x", mode="dual").short.factors == tuple(
        SCALINGS["longrope"]["short_factor"]
    )


def test_a_length_that_is_decided_holds_in_the_rope_fields_too() -> None:
    config = families.config("llama")
    fields = {"rope_type": "default", "rope_theta": 1e4, "original_max_position_embeddings": 128}
    config.rope_parameters, config.max_position_embeddings = fields, 256
    set_original_length(config, 64)
    assert Rope.of(config).original_length == 64


def test_a_short_chat_with_a_checkpoint_of_two_sets_is_its_own() -> None:
    model, ids = scaled("longrope"), tokens(1, 20)
    rope = Rope.of(model)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    own = model.generate(ids, **options)
    for policy in ("pin", "switch"):
        with generating(model, Extension.of(rope, scheme("yarn", rope, LONGER)), policy):
            assert torch.equal(model.generate(ids, **options), own)


def test_an_adapter_is_off_where_the_checkpoint_has_its_own_sets() -> None:
    rope = Rope.of(scaled("longrope"))
    embedding = LongRoPE.of(Extension.of(rope, scheme("yarn", rope, LONGER)))
    positions = torch.tensor([[L0 - 1], [L0], [LENGTH - 1], [LENGTH]])
    assert embedding.rescales(positions).tolist() == [False, False, False, True]
    own = LongRoPE.static(rope, [Extension.of(rope, scheme("yarn", rope, LONGER)).at(L0)])
    assert own.rescales(positions[:1]).tolist() == [False]


def test_results_keep_the_scaling_of_the_checkpoint() -> None:
    rope = Rope.of(scaled("longrope"))
    results = lr.EvalResults(rope, {"mine": Candidate("model", scheme("pi", rope, LONGER))})
    assert lr.EvalResults.from_json(results.to_json()).rope == rope


def test_applied_factors_come_out_again_bit_for_bit() -> None:
    model = scaled("yarn")
    ids, before, config = tokens(1, LENGTH), logits(scaled("yarn"), tokens(1, LENGTH)), model.config.to_dict()
    scaling = scheme("ntk", Rope.of(model), LONGER)
    lr.apply(model, scaling)
    assert Rope.of(model) == Rope.of(scaled("yarn"))
    with patch(scaled("yarn"), scaling) as patched:
        assert torch.equal(logits(model, ids), logits(patched, ids))
    lr.detach(model)
    assert torch.equal(logits(model, ids), before)
    assert model.config.to_dict() == config
