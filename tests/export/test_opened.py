"""Exported checkpoints in fresh processes of plain transformers: this version, and 4.57 (`make test-compat`)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import all_types
import families
import pytest
import torch
from families import build, logits, tokens
from safetensors.torch import load_file
from test_huggingface import TOKENIZER, extension
from torch import Tensor
from transformers import PreTrainedModel

from longrope.data.documents import load_documents
from longrope.export.huggingface import export_huggingface
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import attention_factor, scheme

HERE = Path(__file__).parent
COMPAT = HERE.parent.parent / ".venv-compat" / "bin" / "python"
PYTHONS = [pytest.param(sys.executable, id="this"), pytest.param(str(COMPAT), id="4.57", marks=pytest.mark.compat)]
LENGTHS = [63, 64, 65, 128]
REJECTED = {"olmo2"}  # its config in transformers 4.57 knows linear and dynamic only
IGNORED = {"nemotron"}  # its rotary embedding in transformers 4.57 is plain whatever the config says
TEXT = "t7 t8 t100"


@dataclass(frozen=True)
class Exported:
    """Checkpoints, and what the patched models compute: ``logits[folder][j]`` of ``lists[j]``."""

    folders: dict[str, Path]
    lists: list[list[int]]
    logits: dict[str, list[Tensor]]

    def opened(self, python: str, folder: Path, text: str = TEXT) -> dict[str, Tensor]:
        """What a process of another Python computes from the folders."""
        asked = {"folders": [str(path) for path in self.folders.values()], "text": text, "tokens": self.lists}
        (folder / "asked.json").write_text(json.dumps(asked))
        subprocess.run([python, HERE / "opened.py", folder / "asked.json", folder / "answered"], check=True)
        return load_file(folder / "answered")


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).square().mean() / ours.square().mean()).sqrt().item()


def perplexity(logits: Tensor, ids: list[int]) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).item())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    made = Exported({}, [tokens(1, length)[0].tolist() for length in LENGTHS], {})
    for family in families.FAMILIES:
        for mode in ("dual", "static"):
            model, name = build(family), f"{family}-{mode}"
            made.folders[name] = tmp_path_factory.mktemp("exported") / name
            held = export_huggingface(model, TOKENIZER, extension(model), made.folders[name], mode=mode)
            with patch(model, held):
                made.logits[name] = [logits(model, torch.tensor([ids]))[0] for ids in made.lists]
    return made


@pytest.mark.parametrize("python", PYTHONS)
def test_every_family_in_a_fresh_process(exported: Exported, python: str, tmp_path: Path) -> None:
    answered, wrong = exported.opened(python, tmp_path), set()
    for i, name in enumerate(exported.folders):
        family = name.rsplit("-", 1)[0]
        assert answered[f"{i}.ids"].tolist() == TOKENIZER(TEXT)["input_ids"] or family == "qwen2"  # has its own class
        if python != sys.executable and family in REJECTED:
            assert f"{i}.0" not in answered
            continue
        differences = [difference(ours, answered[f"{i}.{j}"]) for j, ours in enumerate(exported.logits[name])]
        wrong |= {family} if max(differences) > 1e-4 else set()
    assert wrong == (set() if python == sys.executable else IGNORED)


ORIGINAL = {"original_max_position_embeddings": 16}
GROWING = [1.0, 1.0, 1.1, 1.5, 2.0, 3.0, 4.0, 4.5]
COMPOSED: dict[str, dict[str, Any]] = {  # checkpoints that carry a scaling from 16 to 64 tokens
    "llama": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    "qwen2": {"rope_type": "yarn", "factor": 4.0, **ORIGINAL},
    "phi3": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": GROWING},
}


def composed(family: str) -> PreTrainedModel:
    fields = ORIGINAL if family == "phi3" else {}
    return build(family, rope_parameters={"rope_theta": 1e4, **COMPOSED[family]}, **fields)


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["dual", "static"])
def test_composed_checkpoints_in_the_older_version(mode: str, tmp_path: Path) -> None:
    """Their own scaling times new factors; in the dual mode, texts of up to 64 tokens have the former alone."""
    made = Exported({}, [tokens(1, length)[0].tolist() for length in (16, 63, 100, 256)], {})
    kinds = [family for family in COMPOSED if family != "phi3" or mode == "static"]  # which has one attention factor
    for family in kinds:
        model, made.folders[family] = composed(family), tmp_path / family
        rope = Rope.of(model)
        assert rope.original_length == 64
        own = Rope(rope.dim, rope.base, rope.short_length or 64)
        attention = attention_factor("su", own, 256) / rope.attention_factor if family == "phi3" else 1.0
        extension = Extension.of(rope, replace(scheme("ntk", rope, 256), attention_factor=attention))
        export_huggingface(model, TOKENIZER, extension, made.folders[family], mode=mode, check=False)
        made.logits[family] = []
        for ids in made.lists:
            with patch(model, None if mode == "dual" and len(ids) <= 64 else extension.long):
                made.logits[family].append(logits(model, torch.tensor([ids]))[0])
    answered = made.opened(str(COMPAT), tmp_path)
    for i, family in enumerate(kinds):
        for j, ours in enumerate(made.logits[family]):
            assert difference(ours, answered[f"{i}.{j}"]) < 1e-4, (family, len(made.lists[j]))


OTHERS = ("gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "deepseek_v2", "deepseek_v3")


@pytest.mark.compat
@pytest.mark.parametrize("mode", ["dual", "static"])
def test_images_and_latent_attention_in_the_older_version(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untied = {"tie_word_embeddings": False}  # 4.57 does not tie the tiny Mistral 3's head
    for name in ("mistral3", "mistral"):
        monkeypatch.setitem(all_types.OVERRIDES, name, untied)
    made = Exported({}, [tokens(1, length)[0].tolist() for length in LENGTHS], {})
    for kind in OTHERS:
        model, made.folders[kind] = all_types.build(kind), tmp_path / kind
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
        extension = Extension.of(Rope.of(model), scheme("ntk", Rope.of(model), 256))
        export_huggingface(model, TOKENIZER, extension, made.folders[kind], mode=mode, check=False)
        with patch(model, extension if mode == "dual" else extension.long):
            made.logits[kind] = [logits(model, torch.tensor([ids]))[0] for ids in made.lists]
    answered = made.opened(str(COMPAT), tmp_path)
    for i, kind in enumerate(OTHERS):
        for j, ours in enumerate(made.logits[kind]):
            assert difference(ours, answered[f"{i}.{j}"]) < 1e-4, (kind, len(made.lists[j]))


@pytest.mark.compat
@pytest.mark.parametrize("python", PYTHONS)
def test_the_demo_has_the_same_perplexity_short_and_long(demo: Path, python: str, tmp_path: Path) -> None:
    held = load_factors(demo / "checkpoint")
    assert isinstance(held, Extension)
    model, tokenizer = load(str(demo / "stage-1" / "model"), dtype="float32")
    text = "\n".join(document.text for document in load_documents("stdlib:unseen")[:40])[:16_000]
    ids = tokenizer(text)["input_ids"]
    lists = [ids[:200], ids[:2048]]
    with patch(model, held):
        ours = [logits(model, torch.tensor([one]))[0] for one in lists]
    answered = Exported({"demo": demo / "checkpoint"}, lists, {}).opened(python, tmp_path, text)
    assert answered["0.ids"].tolist() == ids
    for j, one in enumerate(lists):
        assert perplexity(answered[f"0.{j}"], one) == pytest.approx(perplexity(ours[j], one), rel=1e-5)
    assert perplexity(logits(model, torch.tensor([lists[1]]))[0], lists[1]) > 2 * perplexity(ours[1], lists[1])
