"""Exported checkpoints in fresh processes of plain transformers: this version, and 4.57 (`make test-compat`)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import families
import pytest
import torch
from families import build, logits, tokens
from safetensors.torch import load_file
from test_huggingface import TOKENIZER, extension
from torch import Tensor

from longrope.data.documents import load_documents
from longrope.export.huggingface import export_huggingface
from longrope.formats.load_factors import load_factors
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.scaling import Extension

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
