"""Fine-tuning on the Trainer: what it trains, what it leaves as it was, and what a crash costs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import running
import torch
from safetensors.torch import save_file
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerState, TrainingArguments

from longrope.data.training_windows import IGNORED, TrainingWindows
from longrope.errors import LongRopeError
from longrope.longcontext.token_losses import token_losses
from longrope.models.patch import install_factors, patch
from longrope.scaling import Extension
from longrope.stages import finetune as module
from longrope.stages.finetune import TrainingSummary, finetune
from longrope.stages.plan_tables import Distill, Finetune
from longrope.stages.trainer_checkpoints import COMPLETE, TrainingGuard, explain_disk_errors, last_complete_checkpoint

# peft 0.21 asks transformers 5.23 by the old name
STEPS, EVERY = 6, 2
EXTENSION = Extension.of(running.ROPE, running.FACTORS)


def how(**changes: object) -> Finetune:
    given = {"steps": STEPS, "batch": 1, "rate": 3e-3, "dtype": "float32", "save_every": EVERY, **changes}
    return Finetune(**given)


def train(
    folder: Path,
    wanted: Finetune,
    *,
    model: PreTrainedModel | None = None,
    windows: TrainingWindows | None = None,
    factors: object = running.FACTORS,
    on_progress: Callable[[int, float], None] | None = None,
    **options: object,
) -> tuple[TrainingSummary | None, list[float]]:
    """Fine-tune in ``folder``; return the summary and the loss of every step."""
    losses: list[float] = []

    def keep_loss(step: int, loss: float) -> None:
        losses.append(loss)
        if on_progress is not None:
            on_progress(step, loss)

    done = finetune(
        running.build() if model is None else model,
        factors,
        windows or running.windows(wanted.batch * (wanted.steps or 0)),
        wanted,
        folder=folder / "training",
        on_progress=keep_loss,
        **options,
    )
    return done, losses


class Stopped(Exception):  # noqa: N818
    pass


def stop_at(step: int) -> Callable[[int, float], None]:
    def on_progress(now: int, _: float) -> None:
        if now == step:
            raise Stopped

    return on_progress


def checkpoints(folder: Path) -> list[int]:
    return sorted(int(path.name.rsplit("-", 1)[1]) for path in (folder / "training").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingSummary, list[float]]:
    """A run of six steps in one go."""
    folder = tmp_path_factory.mktemp("whole")
    done, losses = train(folder, how())
    assert done is not None
    return folder, done, losses


def plain_losses(model: PreTrainedModel, windows: TrainingWindows, number: int) -> np.ndarray:
    """The losses of what is predicted in a sequence, by the model's own forward without ours."""
    item = {name: torch.from_numpy(array) for name, array in windows[number].items()}
    labels = item.pop("labels")
    with torch.inference_mode():
        logits = model(**item, use_cache=False).logits[:, :-1].flatten(0, 1)
    targets = labels[:, 1:].flatten()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)[
        targets != IGNORED
    ].numpy()


def test_the_first_loss_is_that_of_the_patched_model(whole: tuple[Path, TrainingSummary, list[float]]) -> None:
    model, windows = running.build(), running.windows(STEPS)
    with patch(model, running.FACTORS):
        wanted = plain_losses(model, windows, 0).mean()
        starts = windows[0]["labels"][0] == IGNORED
        whole_text = token_losses(model, windows[0]["input_ids"])[0][~starts[1:]].mean()
    assert whole[2][0] == pytest.approx(wanted, rel=1e-5)
    assert whole[2][0] == pytest.approx(whole_text, rel=1e-5)
    assert abs(plain_losses(model, windows, 0).mean() - wanted) > 1e-3  # without the factors it is another


def test_what_was_done_is_told(whole: tuple[Path, TrainingSummary, list[float]]) -> None:
    folder, done, losses = whole
    assert (done.steps, done.tokens) == (STEPS, STEPS * running.LENGTH)
    assert done.loss == losses[-1]
    assert done.seconds > 0
    assert len(losses) == STEPS
    assert sorted(path.name for path in (folder / "training").glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize(
    ("changes", "options"),
    [({"rate": 1e-3}, {}), ({}, {"factors": replace(running.FACTORS, attention_factor=1.5)}), ({}, {"windows": 5})],
    ids=["settings", "factors", "windows"],
)
def test_a_folder_belongs_to_one_training(
    whole: tuple[Path, TrainingSummary, list[float]], changes: dict[str, float], options: dict[str, Any]
) -> None:
    """Else the checkpoint of the first one would be the result of the second, untrained."""
    if "windows" in options:
        options = {"windows": running.windows(options["windows"])}
    with pytest.raises(LongRopeError, match="training': holds a training with other settings, factors or windows"):
        train(whole[0], how(**changes), **options)


def test_too_few_windows_for_a_step(tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=r"windows: fewer than batch = 4, so no step\. Give more"):
        train(tmp_path, how(batch=4), windows=running.windows(3))


def test_the_loss_told_is_of_the_last_tenth(tmp_path: Path) -> None:
    done, losses = train(tmp_path, how(steps=20, batch=1, save_every=20), windows=running.windows(20, length=80))
    assert done is not None
    assert done.loss == pytest.approx(np.mean(losses[-2:]))


def test_training_lowers_the_loss_of_its_windows(whole: tuple[Path, TrainingSummary, list[float]]) -> None:
    windows = running.windows(STEPS)
    before, after = running.build(), AutoModelForCausalLM.from_pretrained(whole[0] / "training" / "model")
    means = []
    for model in (before, after):
        with patch(model, running.FACTORS):
            means.append([plain_losses(model, windows, number).mean() for number in range(STEPS)])
    assert (np.array(means[1]) < np.array(means[0]) - 0.3).all()


def test_what_is_saved_is_a_plain_model(whole: tuple[Path, TrainingSummary, list[float]], tmp_path: Path) -> None:
    running.build().save_pretrained(tmp_path / "before")
    one, other = running.weights(tmp_path / "before"), running.weights(whole[0] / "training" / "model")
    assert {name: tensor.shape for name, tensor in one.items()} == {name: t.shape for name, t in other.items()}
    assert all(not torch.equal(one[name], other[name]) for name in one)  # all weights were trained
    files = [
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "before", whole[0] / "training" / "model")
    ]
    assert files[0] == files[1]
    model, report = AutoModelForCausalLM.from_pretrained(whole[0] / "training" / "model", output_loading_info=True)
    assert not any(report.values())
    assert model.config.rope_parameters["rope_type"] == "default"


def test_the_factors_are_the_same_for_all_positions_and_rows(tmp_path: Path) -> None:
    """Windows of short rows only, with a static scaling: every row has the long factors."""
    windows, model = running.windows(2, short=0.99), running.build()
    assert windows[1]["input_ids"].shape == (running.LENGTH // running.L0, running.L0)
    _, losses = train(tmp_path, how(steps=2, warmup=0.9, rate=1e-12), windows=windows)
    with patch(model, running.FACTORS):
        assert losses[1] == pytest.approx(plain_losses(model, windows, 1).mean(), rel=1e-5)


def test_short_rows_see_the_original_rope(tmp_path: Path) -> None:
    windows, model = running.windows(4, short=0.5), running.build()
    _, losses = train(tmp_path, how(steps=4, short=0.5, rate=1e-12), windows=windows, factors=EXTENSION)
    rows = [len(windows[i]["input_ids"]) for i in range(4)]
    assert rows == [1, 4, 1, 4]
    for number in (1, 3):
        assert losses[number] == pytest.approx(plain_losses(model, windows, number).mean(), rel=1e-5)
    with patch(model, running.FACTORS):
        for number in (0, 2):
            assert losses[number] == pytest.approx(plain_losses(model, windows, number).mean(), rel=1e-5)
        for number in (1, 3):
            assert abs(losses[number] - plain_losses(model, windows, number).mean()) > 1e-4


def test_skipped_positions_reach_the_model(tmp_path: Path) -> None:
    windows, model = running.windows(3, length=1024, window=128), running.build()
    assert max(windows[i]["position_ids"].max() for i in range(3)) > 256
    _, losses = train(tmp_path, how(steps=3, rate=1e-12, window=128), windows=windows)
    with patch(model, running.FACTORS):
        wanted = [plain_losses(model, windows, number).mean() for number in range(3)]
    assert losses == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"short": 0.5}], ids=["long", "mixed"])
def test_a_step_is_the_mean_over_the_predicted_tokens_of_its_batch(tmp_path: Path, options: dict[str, float]) -> None:
    """Loss and gradient alike: after one step they move all weights by the rate, so compare with a step by hand."""
    batch, rate = 4, 1e-3
    windows = running.windows(batch, **options)
    factors = EXTENSION if options else running.FACTORS
    _, losses = train(
        tmp_path, how(steps=1, batch=batch, rate=rate, warmup=0, **options), windows=windows, factors=factors
    )

    model = install_factors(running.build(), factors)
    counts, total = [], torch.zeros(())
    for number in range(batch):
        item = {name: torch.from_numpy(array) for name, array in windows[number].items()}
        counts.append(int((item["labels"] != IGNORED).sum()))
        total = total + model(**item, use_cache=False).loss * counts[-1]
    loss = total / sum(counts)
    if options:
        assert len(set(counts)) > 1  # else the mean of means would be the same
    assert losses == pytest.approx([loss.item()], rel=1e-5)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0).step()
    found = running.weights(tmp_path / "training" / "model")
    for name, parameter in model.named_parameters():
        moved = (found[name] - parameter.detach()).abs()
        assert (moved < 0.05 * rate).float().mean() > 0.99, name  # Adam's first step is the gradient's sign: noise is ±


def test_rates_follow_the_schedule(tmp_path: Path) -> None:
    train(tmp_path, how(steps=4, warmup=0.25, rate=1e-3, schedule="linear", save_every=4))
    state = json.loads((tmp_path / "training" / "checkpoint-4" / "trainer_state.json").read_text())
    rates = [row["learning_rate"] for row in state["log_history"]]
    assert rates == pytest.approx([0, 1e-3, 2e-3 / 3, 1e-3 / 3])
    optimizer = torch.load(tmp_path / "training" / "checkpoint-4" / "optimizer.pt", weights_only=True)
    assert {group["betas"] for group in optimizer["param_groups"]} == {(0.9, 0.95)}


def test_bfloat16_is_mixed_precision(whole: tuple[Path, TrainingSummary, list[float]], tmp_path: Path) -> None:
    _, losses = train(tmp_path, how(dtype="bfloat16"))
    assert losses == pytest.approx(whole[2], rel=2e-2)
    assert losses != whole[2]
    found = running.weights(tmp_path / "training" / "model")
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())


@pytest.mark.parametrize("step", [2, 3])
def test_stopped_and_resumed_equals_uninterrupted(
    whole: tuple[Path, TrainingSummary, list[float]], step: int, tmp_path: Path
) -> None:
    with pytest.raises(Stopped):
        train(tmp_path, how(), on_progress=stop_at(step))
    kept = (step - 1) // EVERY * EVERY
    assert max(checkpoints(tmp_path), default=0) == kept
    done, losses = train(tmp_path, how())
    assert losses == whole[2][kept:]
    assert done is not None
    assert (done.steps, done.tokens, done.loss) == (STEPS, STEPS * running.LENGTH, whole[1].loss)
    running.assert_equal(tmp_path / "training" / "model", whole[0] / "training" / "model")


MIXED = {"batch": 2, "short": 0.5, "dtype": "bfloat16", "rate": 1e-3}


def test_so_it_does_with_dropout_mixed_windows_and_accumulation(tmp_path: Path) -> None:
    """Dropout draws from the random state that a checkpoint must hold."""

    def part(folder: Path, on_progress: Callable[[int, float], None] | None = None) -> list[float]:
        windows = running.windows(2 * STEPS, short=0.5)
        model = running.build(attention_dropout=0.3)
        return train(folder, how(**MIXED), model=model, windows=windows, factors=EXTENSION, on_progress=on_progress)[1]

    losses = part(tmp_path / "whole")
    with pytest.raises(Stopped):
        part(tmp_path / "cut", stop_at(5))
    torch.manual_seed(12345)
    assert part(tmp_path / "cut") == losses[4:]
    running.assert_equal(tmp_path / "cut" / "training" / "model", tmp_path / "whole" / "training" / "model")


def test_a_run_that_died_after_its_last_checkpoint_trains_no_more(
    whole: tuple[Path, TrainingSummary, list[float]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "training", tmp_path / "training")
    done, losses = train(tmp_path, how())
    assert losses == []
    assert done is not None
    assert done.loss == whole[1].loss
    running.assert_equal(tmp_path / "training" / "model", whole[0] / "training" / "model")


def test_checkpoints_that_a_crash_cut_are_removed(
    whole: tuple[Path, TrainingSummary, list[float]], tmp_path: Path
) -> None:
    shutil.copytree(whole[0] / "training", tmp_path / "training")
    (tmp_path / "training" / "checkpoint-6" / COMPLETE).unlink()
    (tmp_path / "training" / "checkpoint-6" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "training" / "checkpoint-2").mkdir()  # one that was being removed
    (tmp_path / "training" / "checkpoint-10").mkdir()  # sorts before checkpoint-6 as text
    found = last_complete_checkpoint(tmp_path / "training", remove_others=False)
    assert found == str(tmp_path / "training" / "checkpoint-4")
    assert (tmp_path / "training" / "checkpoint-10").exists()
    _, losses = train(tmp_path, how())
    assert losses == whole[2][4:]
    running.assert_equal(tmp_path / "training" / "model", whole[0] / "training" / "model")
    assert sorted(path.name for path in (tmp_path / "training").glob("checkpoint-*")) == [
        "checkpoint-4",
        "checkpoint-6",
    ]


class Poisoned(TrainingWindows):
    """Windows; the fourth step reads a token whose embedding is not finite."""

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        item = super().__getitem__(index)
        if index == 3:
            item["input_ids"][0, 7] = 1
        return item


@pytest.mark.parametrize(("value", "lora"), [(math.nan, 0), (math.inf, 4)])
def test_a_loss_that_is_not_finite_stops_it(tmp_path: Path, value: float, lora: int) -> None:
    model = running.build()
    model.get_input_embeddings().weight.data[1] = value
    good = running.windows(STEPS)
    windows = Poisoned(good.documents, length=running.LENGTH, count=STEPS, original_length=running.L0)
    said = (
        rf"finetune: the gradient of step 4 is not finite; the last complete checkpoint is kept in "
        rf"{tmp_path}/training. Begin another run .* lower finetune.rate, or dtype = \"float32\""
    )
    with pytest.raises(LongRopeError, match=said):
        train(tmp_path, how(lora=lora), model=model, windows=windows)
    assert not (tmp_path / "training" / "model").exists()
    kept = tmp_path / "training" / "checkpoint-2"
    assert [path.name for path in (tmp_path / "training").glob("checkpoint-*")] == [kept.name]
    assert (kept / COMPLETE).exists()
    rows = json.loads((kept / "trainer_state.json").read_text())["log_history"]
    assert all(math.isfinite(row["loss"]) for row in rows)
    held = running.weights(kept)
    assert held
    bad = {name for name, tensor in held.items() if not torch.isfinite(tensor).all()}
    assert bad == (set() if lora else {"model.embed_tokens.weight"})  # what was not finite before
    if not lora:
        assert torch.isfinite(held["model.embed_tokens.weight"]).all(dim=1).sum() == families.VOCABULARY - 1


def test_lora_changes_the_linear_layers_alone(tmp_path: Path) -> None:
    running.build().save_pretrained(tmp_path / "before")
    _, losses = train(tmp_path, how(lora=4, rate=3e-2))
    before, after = running.weights(tmp_path / "before"), running.weights(tmp_path / "training" / "model")
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-4) <= 4
    assert losses[-1] < losses[0] - 0.1
    files = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("before", "training/model")]
    assert files[0] == files[1]
    assert [path.name for path in (tmp_path / "training" / "model").glob("adapter*")] == []
    model, windows = AutoModelForCausalLM.from_pretrained(tmp_path / "training" / "model"), running.windows(STEPS)
    with patch(model, running.FACTORS):
        merged = plain_losses(model, windows, 0).mean()
    assert merged < losses[0] - 0.1  # merged, they still know what they learnt


def test_no_warning_names_a_base_model_without_a_config_file(tmp_path: Path) -> None:
    """A GGUF, or a model of the hub where there is no network."""
    model = running.build()
    model.name_or_path = str(tmp_path / "base")
    train(tmp_path, how(lora=4, steps=2, merge=False), model=model)
    assert json.loads((tmp_path / "training" / "model" / "adapter_config.json").read_text())["r"] == 4


def test_adapters_in_bfloat16_read_activations_without_a_cast_of_their_own(tmp_path: Path) -> None:
    read: set[torch.dtype] = set()

    def note(module: Any, inputs: Any) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 3:  # the rank
            read.add(inputs[0].dtype)

    with register_module_forward_pre_hook(note):
        train(tmp_path, how(lora=3, steps=2, dtype="bfloat16"))
    assert torch.bfloat16 in read


def test_lora_is_the_same_whatever_was_drawn_before(tmp_path: Path) -> None:
    for number in (1, 2):
        torch.manual_seed(number)
        train(tmp_path / str(number), how(lora=4, steps=2))
    running.assert_equal(tmp_path / "1" / "training" / "model", tmp_path / "2" / "training" / "model")
    train(tmp_path / "3", how(lora=4, steps=2, seed=1))
    one, other = (
        running.weights(tmp_path / "1" / "training" / "model"),
        running.weights(tmp_path / "3" / "training" / "model"),
    )
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_lora_stopped_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    _, losses = train(tmp_path / "whole", how(lora=4))
    with pytest.raises(Stopped):
        train(tmp_path / "cut", how(lora=4), on_progress=stop_at(5))
    assert train(tmp_path / "cut", how(lora=4))[1] == losses[4:]
    running.assert_equal(tmp_path / "cut" / "training" / "model", tmp_path / "whole" / "training" / "model")


def test_lora_without_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        LongRopeError, match=r'finetune.lora = 4 needs the package peft: pip install "longrope\[lora\]"'
    ):
        train(tmp_path, how(lora=4))
    assert not (tmp_path / "training").exists()


def test_a_loss_that_is_not_finite_without_gradients_at_hand(tmp_path: Path) -> None:
    """As with DeepSpeed, which keeps them to itself."""
    guard, state = TrainingGuard(None), TrainerState(global_step=7)
    guard.on_log(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, None, logs={"loss": 1.0})
    guard.on_log(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, None, logs={"train_runtime": 1.0})
    with pytest.raises(LongRopeError, match="finetune: the loss of step 7 is not finite"):
        guard.on_log(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), state, None, logs={"loss": math.nan})


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    train(tmp_path, how(steps=2), model=running.build(tie_word_embeddings=True))
    assert "lm_head.weight" not in running.weights(tmp_path / "training" / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "training" / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("family", ["gemma2", "phi3", "gpt_neox", "gemma3_text"])
def test_other_families(tmp_path: Path, family: str) -> None:
    model = families.build(family)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    windows = running.windows(2, length=128)
    with patch(model, running.scheme_for(model)):
        wanted = plain_losses(model, windows, 0).mean()
    _, losses = train(tmp_path, how(steps=2), model=model, windows=windows, factors=running.scheme_for(model))
    assert losses[0] == pytest.approx(wanted, rel=1e-4)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "training" / "model", output_loading_info=True)
    assert not any(report.values())
    changed = [name for name, parameter in loaded.named_parameters() if not torch.equal(parameter, before[name])]
    assert len(changed) > len(before) / 2


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(tmp_path, how(steps=2), report_to="tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = list((tmp_path / "training").rglob("events.out.tfevents.*"))
    assert len(events) == 1
    read = EventAccumulator(str(events[0]))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == [1, 2]


WRITERS = {
    "text": lambda: Path("/dev/full").write_text("x"),
    "torch": lambda: torch.save({"a": torch.zeros(300_000)}, "/dev/full"),
    "safetensors": lambda: save_file({"a": torch.zeros(3)}, "/nowhere/at/all/x.safetensors"),
}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written(name: str, tmp_path: Path) -> None:
    with (
        pytest.raises(LongRopeError, match=f"cannot write {tmp_path}: .*; make room, then --resume"),
        explain_disk_errors(tmp_path),
    ):
        WRITERS[name]()


def test_other_errors_are_not_about_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), explain_disk_errors(tmp_path):
        torch.zeros(2) + torch.zeros(3)


RUN = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
import running, test_finetune
test_finetune.train(Path(sys.argv[1]), test_finetune.how(steps=30, save_every=1))
"""


@pytest.mark.slow
def test_killed_while_it_writes_checkpoints(tmp_path: Path) -> None:
    """Killed as soon as a checkpoint's folder appears, and a little later each time, until it is done."""
    train(tmp_path / "whole", how(steps=30, save_every=1))
    cut, moments = tmp_path / "cut", [0.0, 0.002, 0.004, 0.008, 0.015]
    halves = 0
    for number, moment in enumerate(moments):
        tests = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
        process = subprocess.Popen([sys.executable, "-c", RUN, str(cut), *tests])
        last, deadline = max(checkpoints(cut), default=0), time.monotonic() + 120
        while max(checkpoints(cut), default=0) < last + 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        time.sleep(moment)
        process.kill()
        assert process.wait() == -9, number
        halves += any(not (path / COMPLETE).exists() for path in (cut / "training").glob("checkpoint-*"))
    assert halves > 0
    _, losses = train(cut, how(steps=30, save_every=1))
    assert 0 < len(losses) < 20
    running.assert_equal(cut / "training" / "model", tmp_path / "whole" / "training" / "model")


@pytest.mark.slow
def test_a_full_disk(
    whole: tuple[Path, TrainingSummary, list[float]], tmp_path: Path, small_disk: Callable[[int], Path]
) -> None:
    """Room for one checkpoint but not for the next; once there is more, it goes on."""
    size = sum(path.stat().st_size for path in (whole[0] / "training" / "checkpoint-4").iterdir())
    disk = small_disk(int(1.6 * size))
    with pytest.raises(LongRopeError, match=rf"cannot write {disk}/training: .*; make room, then --resume"):
        train(disk, how())
    assert [path.name for path in (disk / "training").iterdir() if (path / COMPLETE).exists()] == ["checkpoint-2"]
    shutil.copytree(disk, tmp_path / "roomy")
    _, losses = train(tmp_path / "roomy", how())
    assert losses == whole[2][2:]
    running.assert_equal(tmp_path / "roomy" / "training" / "model", whole[0] / "training" / "model")


@pytest.mark.parametrize("named", [False, True])
def test_the_teacher_has_the_original_rope_exactly(named: bool, tmp_path: Path) -> None:
    """Its weights are in the dtype of training, its frequencies in float32."""
    name = str(running.save(tmp_path / "teacher")) if named else None
    settings = how(short=0.5, distill=Distill(teacher=name), dtype="bfloat16")
    distillation = module._distillation(running.build(), settings)
    assert distillation is not None
    teacher = distillation.teacher
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert torch.equal(teacher.model.rotary_emb.inv_freq, running.build().model.rotary_emb.inv_freq)


def test_sparse_windows_of_layers_that_need_every_token_are_refused(tmp_path: Path) -> None:
    """Its config names no layer types, yet its masks depend on the tokens between."""
    model = families.build("doge", keep_window_size=40)
    windows = running.windows(2, window=128, sparse=True)
    with pytest.raises(LongRopeError, match=r"model type 'doge' needs every token .*leave windows and window out"):
        train(tmp_path, how(steps=2, window=128, windows="sparse"), model=model, windows=windows)
    assert not (tmp_path / "training").exists()
