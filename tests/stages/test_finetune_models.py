"""Fine-tuning of models that read images, and of multi-head latent attention: L0 = 64."""

from __future__ import annotations

from pathlib import Path

import all_types
import families
import numpy as np
import pytest
import running
import torch
from transformers import PreTrainedModel

import longrope as lr
from longrope.errors import LongRopeError
from longrope.longcontext.sparse_attention import WEIGHTED
from longrope.models.backbone import auto_class, backbone_of
from longrope.rope import Rope
from longrope.schemes import scheme
from longrope.stages.begin_run import begin_run
from longrope.stages.finetune import finetune
from longrope.stages.pipeline import extend
from longrope.stages.plan import parse_plan
from longrope.stages.plan_tables import Finetune
from longrope.stages.run_folder import StagedRun

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")  # of experts
IMAGES = ["gemma3", "mistral3", "qwen2_5_vl", "qwen3_vl", "llama4"]
LATENT = ["deepseek_v2", "deepseek_v3", "minicpm3"]
EVERY_TOKEN = {  # no sparse windows
    "llama4": "layers of the type chunked_attention need every token",
    "deepseek_v32": "layers of the type indexed_attention need every token",
    "deepseek_v4": "layers of the type compressed_sparse_attention, heavily_compressed_attention need every token",
    "zaya": "layers of the type hybrid need every token",
    "longcat_flash": r"model type 'longcat_flash' needs every token",
}
STEPS = 3
PLAN = """\
version = 1
export = "none"
[data]
source = "TEXTS"
[evaluation]
lengths = []
[[stages]]
length = 256
factors = "ramp"
[stages.finetune]
steps = 2
batch = 1
rate = 1e-3
dtype = "float32"
"""


def build(kind: str) -> PreTrainedModel:
    model = all_types.build(kind)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
    return model


def train(model: PreTrainedModel, folder: Path, *, sparse: bool, **changes: object) -> list[float]:
    """Train a few steps in ``folder``; return the loss of each."""
    options = {"windows": "sparse", "window": 128} if sparse else {}
    settings = Finetune(steps=STEPS, batch=1, rate=1e-3, dtype="float32", save_every=STEPS, **options, **changes)
    sequences = {"length": 1024, "tokens": 1400, "window": 128, "sparse": True} if sparse else {}
    losses: list[float] = []
    finetune(
        model,
        scheme("ntk", Rope.of(model), 256),
        running.windows(STEPS, **sequences),
        settings,
        folder=folder / "training",
        on_progress=lambda _, loss: losses.append(loss),
    )
    return losses


def changed(before: dict[str, torch.Tensor], model: PreTrainedModel, folder: Path) -> set[str]:
    """Load the trained weights; return the names of those that differ."""
    config = all_types.small_config(model.config.model_type)
    trained, report = auto_class(config).from_pretrained(folder / "training" / "model", output_loading_info=True)
    assert not any(report.values())
    after = dict(trained.named_parameters())
    assert after.keys() == before.keys()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


CASES = [  # each two values of model type, windows and adapter come together; Llama 4 has its adapter below
    (kind, sparse, lora)
    for number, kind in enumerate([*IMAGES, *LATENT])
    for sparse, lora in ((False, 4 * (number % 2)), (True, 4 - 4 * (number % 2)))
    if not sparse or kind not in EVERY_TOKEN
]


@pytest.mark.parametrize(("kind", "sparse", "lora"), CASES)
def test_the_text_weights_are_trained(kind: str, sparse: bool, lora: int, tmp_path: Path) -> None:
    model = build(kind)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    text = {id(value) for value in backbone_of(model).parameters()}
    text |= {id(value) for value in model.get_output_embeddings().parameters()}
    names = {name for name, value in model.named_parameters() if id(value) in text}
    losses = train(model, tmp_path, sparse=sparse, lora=lora)
    assert np.isfinite(losses).all()
    assert np.ptp(losses) > 1e-3
    differing = changed(before, model, tmp_path)
    assert differing <= names if lora else differing == names
    assert differing
    if sparse and kind in (*LATENT, "qwen2_5_vl"):
        assert model.config._attn_implementation == WEIGHTED


@pytest.mark.parametrize("kind", EVERY_TOKEN)
def test_sparse_windows_of_attention_that_cannot_weigh_keys_are_refused_before_training(
    kind: str, tmp_path: Path
) -> None:
    with pytest.raises(LongRopeError, match=rf'finetune.windows = "sparse": {EVERY_TOKEN[kind]}'):
        train(build(kind), tmp_path, sparse=True)
    assert not (tmp_path / "training").exists()


@pytest.mark.parametrize("kind", ["llama4", "deepseek_v4"])
def test_linear_modules_that_compute_more_than_a_product_get_no_adapter(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, tmp_path, sparse=False, lora=4)
    names = changed(before, model, tmp_path)
    assert any("q_" in name for name in names)
    assert not any("router" in name or "o_a_proj" in name for name in names)


def test_a_run_extends_a_model_that_reads_images(tmp_path: Path) -> None:
    model, folder = build("gemma3"), tmp_path / "model"
    model.save_pretrained(folder)
    families.tokenizer().save_pretrained(folder)
    texts = running.text_folder(tmp_path / "texts")
    run = StagedRun(tmp_path / "run", str(folder), parse_plan(PLAN.replace("TEXTS", str(texts))), dtype="float32")
    begin_run(run, resume=False)
    extend(run)
    trained, _ = lr.load(str(run.final_weights))
    assert trained.config.model_type == "gemma3"
    images = dict(model.model.vision_tower.named_parameters())
    assert all(torch.equal(value, images[name]) for name, value in trained.model.vision_tower.named_parameters())
    assert not torch.equal(trained.get_input_embeddings().weight, model.get_input_embeddings().weight)
