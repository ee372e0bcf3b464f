"""Carry out a plan: search, fine-tune, search again …, recover the short context, measure."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial

import torch

from longrope.formats.load_factors import load_extension
from longrope.models.load import DTYPES, load, load_config
from longrope.objectives.model_loss import ModelObjective
from longrope.scaling import Extension, Scaling
from longrope.schemes import COMPARED, scheme
from longrope.search.budget import Budget
from longrope.search.find import find_factors
from longrope.search.loop import SearchProgress
from longrope.search.registry import method
from longrope.search.space import Space
from longrope.stages.finetune import finetune
from longrope.stages.launch import first_process, launched, settle
from longrope.stages.measure import measure
from longrope.stages.plan_tables import Search, Stage
from longrope.stages.run_data import method_of
from longrope.stages.run_folder import StagedRun
from longrope.stages.trainer_arguments import wants_liger
from longrope.stages.trainer_checkpoints import writing
from longrope.storage.atomic import write_json, write_text
from longrope.storage.lock import LOCK, locked

RECOVERY_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # the search for short factors starts from these powers of the long ones


def extend(run: StagedRun) -> Extension:
    """Carry out a plan, or what is left of it.

    Every stage leaves a folder with its factors (``extension.json``) and, if it fine-tunes, its weights (``model``). In
    the end the run's folder has ``extension.json`` and ``results.json``.

    Raises:
        LongRopeError: as `find_factors` and `finetune` do; what was done stays, and `extend` goes on from there.
    """
    for number, stage in enumerate(run.plan.stages, start=1):
        if not (run.stage(number) / "extension.json").exists():
            long = _found(run, number, stage)
            write_text(run.stage(number) / "extension.json", Extension.of(run.rope, long).to_json())
        if stage.finetune is not None and not (run.stage(number) / "model").exists():
            launch = run.launch or ((sys.executable,) if wants_liger(run.device) else ())
            launched(run, number, launch) if launch else train(run, number)
        training = run.stage(number) / "training"
        for used in (*training.glob("checkpoint-*"), training / "model"):
            shutil.rmtree(used, ignore_errors=True)
        (run.stage(number) / LOCK).unlink(missing_ok=True)  # of a training that was killed as it ended
    path = run.folder / "extension.json"
    if not path.exists():
        long = run.factors(len(run.plan.stages))
        short = Scaling.identity(run.rope) if run.plan.recovery is None else _recovered(run, long)
        write_text(path, Extension(run.rope, short=short, long=long, length=run.plan.length).to_json())
    extension = load_extension(path)
    measure(run, extension)
    return extension


def train(run: StagedRun, number: int) -> None:
    """Fine-tune the weights of a stage with its factors: ``stage-NUMBER/model``; alike in all processes of a launch.

    Raises:
        LongRopeError: as `finetune` does, or if another fine-tuning of the stage goes on.
    """
    # not the lock of the run: a launch may go on where what began it was killed
    with locked(run.stage(number)) if first_process() else nullcontext():
        _trained(run, number)


def _trained(run: StagedRun, number: int) -> None:
    stage, folder = run.plan.stages[number - 1], run.stage(number)
    how, long = stage.finetune, run.factors(number)
    assert how is not None
    steps, part = how.count(stage.length), f"stage {number}: fine-tune at {stage.length:,}"
    model, tokenizer = load(run.weights(number), dtype=run.dtype if how.lora and how.dtype != "float32" else "float32")
    trained = folder / "training" / "model"
    done = finetune(
        model,
        Extension.of(run.rope, long) if how.short else long,
        run.material.windows(stage),
        how,
        folder=folder / "training",
        output=trained,
        device=run.device,
        report_to=run.report_to,
        watch=lambda step, loss: run.tell(part, step, steps, f"loss {loss:.3f}"),
    )
    if done is None:
        return
    kept, fresh = load_config(run.model).dtype or torch.float32, folder / "model.new"
    with writing(folder):
        shutil.rmtree(fresh, ignore_errors=True)
        tokenizer.save_pretrained(trained)
        model, _ = load(str(trained), dtype=next(name for name, dtype in DTYPES.items() if dtype == kept))
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        write_json(folder / "training.json", asdict(done))
        settle(fresh)
        fresh.rename(folder / "model")


def _found(run: StagedRun, number: int, stage: Stage) -> Scaling:
    """The long factors of a stage."""
    given = run.given(number)
    if given is not None:
        return given
    last, chosen = run.trained_before(number), method(stage.search.method)
    space = Space(
        run.rope,
        stage.length,
        attention_factor=run.attention(number),
        ceiling=chosen.ceiling,
        parametrization=chosen.parametrization,
        before=run.factors(last) if last else None,
    )
    if stage.factors == "search":
        part = f"stage {number}: search at {stage.length:,}"
        starts, schemes = ([closed_form(name, space) for name in names] for names in (chosen.starts, COMPARED))
        return _searched(run, part, number, space, stage.search, [stage.length], starts, schemes)
    return closed_form(stage.factors, space)


def closed_form(name: str, space: Space) -> Scaling:
    """A scheme's factors for the geometry that the model is used to, times the factors that it is used to."""
    found = scheme(name, space.relative, space.length).times(space.relative.factors or [1.0] * space.pairs)
    return replace(found, attention_factor=space.attention_factor)


def _recovered(run: StagedRun, long: Scaling) -> Scaling:
    """Short factors for the weights of the last stage."""
    recovery, original = run.plan.recovery, run.rope.original_length
    assert recovery is not None
    attention, chosen = run.short_attention, method(recovery.search.method)
    largest = recovery.ceiling or max(2.0, *long.factors)
    space = Space(
        run.rope, 2 * original, attention_factor=attention, ceiling=largest / 2, parametrization=chosen.parametrization
    )
    starts = [
        Scaling(
            [min(factor**part, largest) for factor in long.factors],
            attention_factor=attention,
            scheme=f"long^{part:g}",
            length=2 * original,
        )
        for part in RECOVERY_POWERS
    ]
    lengths, number = run.material.recovery_lengths, len(run.plan.stages) + 1
    part = f"recovery at {' and '.join(f'{length:,}' for length in lengths)}"
    return replace(_searched(run, part, number, space, recovery.search, lengths, starts, []), length=original)


def _searched(
    run: StagedRun,
    part: str,
    number: int,
    space: Space,
    how: Search,
    lengths: Sequence[int],
    starts: Sequence[Scaling],
    compared: Sequence[Scaling],
) -> Scaling:
    """The winner of a search on the weights that are there by then."""
    items = run.material.items(how, lengths)
    model, _ = load(run.weights(number), dtype=run.dtype, device=run.device)
    chosen, total = method_of(how, items["search"])

    def watch(_: int, standing: SearchProgress) -> None:
        run.tell(part, standing.tokens, total, f"loss {standing.loss:.3f}")

    return find_factors(
        space,
        partial(ModelObjective, model),
        items["search"],
        items["held_out"],
        (run.stage(number) if number <= len(run.plan.stages) else run.folder / "recovery") / "search",
        method=chosen,
        starts=starts,
        compared=compared,
        budget=Budget(how.budget),
        existing="resume",
        settings={"model": run.begins_with(number), "dtype": str(model.dtype)},
        watch=watch,
    ).extension.long
