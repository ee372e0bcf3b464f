"""Two processes give what one gives: data parallel, FSDP2, and one sequence over both."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import running
import torch

from longrope.errors import LongRopeError
from longrope.scaling import Extension
from longrope.stages.begin_run import begin_run
from longrope.stages.finetune import finetune
from longrope.stages.pipeline import finetune_stage
from longrope.stages.plan import parse_plan
from longrope.stages.plan_tables import Finetune
from longrope.stages.run_folder import StagedRun
from longrope.storage.atomic import write_text

STEPS = 4
ON_CPU = str(Path(__file__).parent / "cpu_launch.py")
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch", "--num_machines", "1", "--num_processes", "2")
LAUNCH += ("--mixed_precision", "no", "--dynamo_backend", "no")
FSDP = (*LAUNCH, "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP")
CONTEXT = ("--use_parallelism_config", "--parallelism_config_cp_size", "2")
# accelerate launch 1.15 refuses --use_parallelism_config without FSDP, which DeepSpeed does not go with
ULYSSES = {
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_SP_SIZE": "2",
    "PARALLELISM_CONFIG_SP_ATTN_IMPLEMENTATION": "sdpa",
    "DS_ACCELERATOR": "cpu",
}
needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="needs deepspeed")
TORCH = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
TORCHRUN = (*TORCH, "-m", "longrope")

Ready = Callable[..., StagedRun]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Ready:
    """Makes runs that are about to fine-tune: four steps of four sequences of 256 tokens."""
    base = tmp_path_factory.mktemp("ready")
    model, texts = running.save(base / "model", num_hidden_layers=2), running.text_folder(base / "texts")

    def make(folder: Path, *lines: str, batch: int = 4) -> StagedRun:
        plan = f"""
version = 1
export = "none"
[[stages]]
length = 256
factors = "yarn"
[stages.finetune]
steps = {STEPS}
batch = {batch}
rate = 1e-3
save_every = 2
dtype = "float32"
{chr(10).join(lines)}
[data]
source = "{texts}"
[evaluation]
lengths = []
"""
        run = StagedRun(folder, str(model), parse_plan(plan))
        begin_run(run, resume=False)
        write_text(run.stage_folder(1) / "extension.json", Extension.of(running.ROPE, running.FACTORS).to_json())
        return run

    return make


def launched(run: StagedRun, *command: str, **variables: str) -> str:
    """What two processes said that must end well."""
    done = subprocess.run(
        [*command, "finetune", str(run.folder), "1", "--device", "cpu"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def losses(run: StagedRun) -> list[float]:
    (state,) = (run.stage_folder(1) / "training").glob(f"checkpoint-{STEPS}/trainer_state.json")
    return [row["loss"] for row in json.loads(state.read_text())["log_history"] if "loss" in row]


def assert_same(found: StagedRun, wanted: StagedRun, tolerance: float = 1e-5) -> None:
    assert len(losses(found)) == STEPS
    assert losses(found) == pytest.approx(losses(wanted), rel=tolerance)
    told = [json.loads((run.stage_folder(1) / "training.json").read_text()) for run in (found, wanted)]
    assert told[0]["loss"] == pytest.approx(told[1]["loss"], rel=tolerance)
    assert (told[0]["steps"], told[0]["tokens"]) == (told[1]["steps"], told[1]["tokens"])
    one, other = running.weights(found.stage_folder(1) / "model"), running.weights(wanted.stage_folder(1) / "model")
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=tolerance, msg=name)


WAYS = {
    "torchrun": (TORCHRUN, ()),
    "accelerate": ((*LAUNCH, "--multi_gpu", "-m", "longrope"), ()),
    "mixed windows": (TORCHRUN, ("short = 0.5",)),
    "LoRA": (TORCHRUN, ("lora = 4",)),
    "FSDP2": ((*FSDP, ON_CPU), ()),
    "FSDP2, full state dict": ((*FSDP, "--fsdp_state_dict_type", "FULL_STATE_DICT", ON_CPU), ()),
    "FSDP2, mixed windows": ((*FSDP, ON_CPU), ("short = 0.5",)),
    "FSDP2, LoRA": ((*FSDP, ON_CPU), ("lora = 4",)),
    "context parallel": ((*FSDP, *CONTEXT, ON_CPU), ()),
    "context parallel, positions skipped": ((*FSDP, *CONTEXT, ON_CPU), ("window = 128",)),
    "context parallel, LoRA": ((*FSDP, *CONTEXT, ON_CPU), ("lora = 4",)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", WAYS)
def test_two_processes_give_what_one_gives(name: str, ready: Ready, tmp_path: Path) -> None:
    command, lines = WAYS[name]
    alone, shared = (ready(tmp_path / folder, *lines) for folder in ("alone", "shared"))
    finetune_stage(alone, 1)
    said = launched(shared, *command)
    assert said.count("fine-tune at 256") > 0
    assert_same(shared, alone)
    assert len(list((shared.stage_folder(1) / "training" / f"checkpoint-{STEPS}").glob("rng_state_*.pth"))) == 2
    sharded = (shared.stage_folder(1) / "training" / f"checkpoint-{STEPS}").glob("pytorch_model_fsdp*")
    assert bool(list(sharded)) == (ON_CPU in command)


@pytest.mark.slow
@needs_deepspeed
def test_ulysses(ready: Ready, tmp_path: Path) -> None:
    alone, shared = ready(tmp_path / "alone"), ready(tmp_path / "shared")
    finetune_stage(alone, 1)
    launched(shared, *TORCH, ON_CPU, **ULYSSES)
    assert_same(shared, alone, tolerance=1e-4)  # a step is the mean of its sequences' means


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchrun", "FSDP2", "FSDP2, full state dict", "context parallel"])
def test_two_processes_resume(name: str, ready: Ready, tmp_path: Path) -> None:
    command, lines = WAYS[name]
    alone, shared = (ready(tmp_path / folder, *lines) for folder in ("alone", "shared"))
    finetune_stage(alone, 1)
    launched(shared, *command)
    shutil.rmtree(shared.stage_folder(1) / "model")
    kept = shared.stage_folder(1) / "training"
    (kept / f"checkpoint-{STEPS}" / "complete").unlink()
    before = (kept / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns
    launched(shared, *command)
    assert (kept / "checkpoint-2" / "trainer_state.json").stat().st_mtime_ns == before
    assert_same(shared, alone)


@pytest.mark.slow
def test_a_batch_that_does_not_divide(ready: Ready, tmp_path: Path) -> None:
    run = ready(tmp_path / "run", batch=3)
    command = [*TORCHRUN, "finetune", str(run.folder), "1", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert "error: finetune.batch = 3 does not divide by 2 processes, 1 a sequence" in " ".join(done.stderr.split())
    assert not (run.stage_folder(1) / "training.json").exists()


@pytest.mark.parametrize(
    ("sharing", "options", "said"),
    [
        ({"CP_SIZE": "2"}, {}, "finetune.batch = 2 does not divide by 1 processes, 2 a sequence"),
        ({"CP_SIZE": "2"}, {"short": 0.5}, "finetune.short = 0.5: documents would see each other"),
        ({"SP_SIZE": "2"}, {"short": 0.5}, "finetune.short = 0.5: documents would see each other"),
        ({"SP_SIZE": "2"}, {"window": 128}, "finetune.window = 128: DeepSpeed takes a jump of positions"),
    ],
)
def test_what_processes_that_share_a_sequence_cannot_do(
    sharing: dict[str, str], options: dict[str, float], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    for name, value in sharing.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}", value)
    windows, how = running.windows(2, **options), Finetune(steps=1, batch=2, dtype="float32", **options)
    with pytest.raises(LongRopeError, match=said):
        finetune(running.build(), running.FACTORS, windows, how, folder=tmp_path / "t")
    assert not (tmp_path / "t").exists()
