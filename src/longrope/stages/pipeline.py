"""Carry out a plan: search, fine-tune, search again …, recover the short context, measure."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from longrope.formats.load_factors import load_extension
from longrope.models.adapter import describe_adapter
from longrope.models.average import mix_weights
from longrope.models.device_memory import device_with_room, explain_out_of_memory, release_memory
from longrope.models.load import DTYPES
from longrope.models.processor_files import copy_processor
from longrope.objectives.backend import open_backend
from longrope.objectives.full_passes import objectives_as_before
from longrope.objectives.prepare_search import prepare_objectives, usable_method
from longrope.scaling import Extension, Scaling
from longrope.schemes import COMPARED, attention_factor, scheme
from longrope.search.loop import SearchProgress
from longrope.search.method import Method
from longrope.search.registry import get_method
from longrope.search.space import Space
from longrope.stages.average_test import choose_average
from longrope.stages.finetune import BEGUN, finetune
from longrope.stages.launch import is_first_process, launch_finetuning, sync_folder
from longrope.stages.measure import measure
from longrope.stages.plan_tables import Search, Stage
from longrope.stages.requirements import check_loaded_weights
from longrope.stages.run_data import search_options
from longrope.stages.run_folder import StagedRun
from longrope.stages.trainer_arguments import wants_liger
from longrope.stages.trainer_checkpoints import explain_disk_errors
from longrope.stages.training_note import training_note
from longrope.storage.atomic import apply_umask, write_json, write_text
from longrope.storage.lock import LOCK, locked

# the search for short factors starts from these powers of the long ones
RECOVERY_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)


def extend(run: StagedRun) -> Extension:
    """Carry out the steps of a plan that the run's folder does not hold yet.

    Every stage leaves a folder with its factors (``extension.json``) and, if it fine-tunes, its weights (``model``). In
    the end the run's folder has ``extension.json`` and ``results.json``.

    Raises:
        LongRopeError: If a search or a fine-tuning fails; finished steps stay, and `extend` continues from there.
    """
    for number, stage in enumerate(run.plan.stages, start=1):
        folder = run.stage_folder(number)
        if not (folder / "extension.json").exists():
            long = _stage_scaling(run, number, stage)
            write_text(folder / "extension.json", Extension.of(run.rope, long).to_json())
            release_memory()  # of the search, for the training, which may run in other processes
        if stage.finetune is not None and not (folder / "model").exists():
            launch_finetuning(run, number) if run.training_command else finetune_stage(run, number)
        for leftover in (*(folder / "training").glob("checkpoint-*"), folder / "training" / "model"):
            shutil.rmtree(leftover, ignore_errors=True)
        (folder / "training" / BEGUN).unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)  # of a training that was killed as it ended
    path = run.folder / "extension.json"
    if not path.exists():
        long = run.long_scaling(len(run.plan.stages))
        short = Scaling.identity(run.rope) if run.plan.recovery is None else _recovered_scaling(run, long)
        write_text(path, Extension(run.rope, short=short, long=long, length=run.plan.length).to_json())
    extension = load_extension(path)
    measure(run, extension)
    return extension


def finetune_stage(run: StagedRun, number: int) -> None:
    """Fine-tune the weights of a stage with its factors: ``stage-NUMBER/model``; the same in all processes of a launch.

    Raises:
        LongRopeError: If the fine-tuning fails, or another fine-tuning of the stage is running.
    """
    # not the lock of the run: a launch may go on after the process that started it was killed
    with locked(run.stage_folder(number)) if is_first_process() else nullcontext():
        _finetune_stage(run, number)


def _finetune_stage(run: StagedRun, number: int) -> None:
    stage, folder = run.plan.stages[number - 1], run.stage_folder(number)
    settings, long = stage.finetune, run.long_scaling(number)
    assert settings is not None
    steps, step_name = settings.step_count(stage.length), run.training_step(number)
    if settings.distill is not None and settings.distill.teacher is None and run.weights(number) != run.model:
        settings = settings.model_copy(update={"distill": settings.distill.model_copy(update={"teacher": run.model})})
    note = training_note()
    keeps_dtype = settings.lora and settings.dtype != "float32"
    model, tokenizer = run.load(run.weights(number), dtype=run.dtype if keeps_dtype else "float32")
    check_loaded_weights(model, settings, f"stages[{number - 1}].finetune")
    summary = finetune(
        model,
        Extension.of(run.rope, long) if settings.short else long,
        run.data.windows(stage),
        settings,
        folder=folder / "training",
        device=run.device,
        report_to=run.report_to,
        on_progress=lambda step, loss: run.on_progress(step_name, step, steps, note(loss)),
    )
    del model
    release_memory()
    if summary is not None:
        with explain_disk_errors(folder):
            if settings.merge:
                _publish_weights(run, number, tokenizer)
            else:
                _publish_adapter(run.weights(number), folder, Extension.of(run.rope, long))
            chosen = settings.model_dump(mode="json", exclude_defaults=True)
            recipe = {"settings": chosen, "needles": run.plan.data.needles}
            write_json(folder / "training.json", asdict(summary) | recipe)
            apply_umask(folder / "model.new")
            sync_folder(folder / "model.new")
            (folder / "model.new").rename(folder / "model")


def _publish_adapter(base: str, folder: Path, extension: Extension) -> None:
    """Write a stage's adapter as ``model.new`` into its folder, with the name of its base and its factors."""
    shutil.rmtree(folder / "model.new", ignore_errors=True)
    shutil.copytree(folder / "training" / "model", folder / "model.new")
    describe_adapter(folder / "model.new", base=base, factors=extension.to_json())


def _publish_weights(run: StagedRun, number: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a stage's weights as ``model.new`` into its folder, in the dtype of the original checkpoint.

    They are the trained weights, or with ``average`` so large a share of the original ones.
    """
    stage, folder = run.plan.stages[number - 1], run.stage_folder(number)
    assert stage.finetune is not None
    dtype, average = run.config.dtype or torch.float32, stage.finetune.average
    trained, unfinished = folder / "training" / "model", folder / "model.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    tokenizer.save_pretrained(trained)
    name = next((name for name, value in DTYPES.items() if value == dtype), "float32")
    if average == "auto":
        original, _ = run.load(run.model, dtype="float32")
        tested: Any = run.load(str(trained), dtype="float32")[0]
        windows, file = run.data.held_out_windows(stage), folder / "average.json"
        device = device_with_room(run.device, sum(parameter.nbytes for parameter in tested.parameters()))
        if device != run.device and wants_liger(run.device):  # whose kernels run on the GPU alone
            tested, device = tested.to(torch.bfloat16), run.device
        with explain_out_of_memory(stage.length, f"on {device}", 'give average a number in place of "auto"'):
            average = choose_average(tested.to(device), original, run.long_scaling(number), windows, file)
        del tested, original
    model, _ = run.load(str(trained), dtype="float32" if average else name)
    if average:
        mix_weights(model, run.load(run.model, dtype="float32")[0], float(average))
    model.to(dtype)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    copy_processor(run.config, unfinished)


def _stage_scaling(run: StagedRun, number: int, stage: Stage) -> Scaling:
    """Return the long factors of a stage: from a file, of a scheme or from a search."""
    scaling = run.scaling_from_file(number)
    if scaling is not None:
        return scaling
    last = run.last_finetuned_before(number)
    attention, before = run.attention_factor(number), run.long_scaling(last) if last else None

    def make_space(method: Method) -> Space:
        return method.make_space(run.rope, stage.length, attention_factor=attention, before=before)

    if stage.factors != "search":
        return closed_form(stage.factors, make_space(get_method(stage.search.method)))
    return _search(run, number, stage.search, [stage.length], make_space)


def closed_form(name: str, space: Space) -> Scaling:
    """Return a scheme's factors for the geometry that the weights are trained for, times the factors in use there."""
    scaling = scheme(name, space.relative, space.length).times(space.factors_before.tolist())
    return replace(scaling, attention_factor=space.attention_factor)


def _recovered_scaling(run: StagedRun, long: Scaling) -> Scaling:
    """Return short factors for the final weights, found by a search.

    The attention factor is searched too where the short sequences of the training had another one than the long
    sequences: weights that serve both do best between the two.
    """
    recovery, original = run.plan.recovery, run.rope.original_length
    assert recovery is not None
    trained = run.short_attention_factor
    search_attention = run.plan.export != "dual" and trained != long.attention_factor  # a dual config has only one
    largest = recovery.ceiling or max(2.0, *long.factors)

    def make_space(method: Method) -> Space:
        return method.make_space(
            run.rope,
            2 * original,
            attention_factor=attention_factor("su", run.rope, 2 * original) if search_attention else trained,
            search_attention=search_attention,
            ceiling=largest / 2,
        )

    starts = [
        Scaling(
            [min(factor**power, largest) for factor in long.factors],
            attention_factor=trained,
            scheme=f"long^{power:g}",
            length=2 * original,
        )
        for power in RECOVERY_POWERS
    ]
    number, lengths = len(run.plan.stages) + 1, run.data.recovery_lengths
    short = _search(run, number, recovery.search, lengths, make_space, starts)
    return replace(short, length=original)


def _search(
    run: StagedRun,
    number: int,
    search: Search,
    lengths: Sequence[int],
    make_space: Callable[[Method], Space],
    starts: Sequence[Scaling] | None = None,
) -> Scaling:
    """Run a search on the current weights and return the winner.

    Where quantised weights let no gradient through, another method takes the place of the plan's.

    Args:
        run: The run.
        number: Number of the stage; the one after the last stage is the recovery.
        search: Settings of the search.
        lengths: Lengths in tokens that count alike.
        make_space: Function that returns the space for a method.
        starts: Candidates that the search starts from; None for closed forms, and others to compare the winner with.
    """
    recovers = number > len(run.plan.stages)
    at = " and ".join(f"{length:,}" for length in lengths)
    step_name = f"recovery at {at}" if recovers else f"stage {number}: search at {at}"
    folder = run.folder / "recovery" if recovers else run.stage_folder(number)
    samples, options = run.data.samples(search, lengths), search_options(search, lengths)
    with open_backend(
        run.weights(number), dtype=run.dtype, device=run.device, original_length=run.plan.original_length
    ) as backend:
        longest = max(lengths)
        method = usable_method(options.method(search.method, longest), backend.gradient_barrier, options, longest)
        space = make_space(method)
        compared = [closed_form(name, space) for name in COMPARED] if starts is None else []
        starts = [closed_form(name, space) for name in method.schemes] if starts is None else starts
        prepared = prepare_objectives(
            space,
            objectives_as_before(backend.make_objective, samples, folder / "search"),
            method,
            options,
            settings={"model": run.weights_name(number), "dtype": backend.dtype},
            starts=starts,
            compared=compared,
        )

        first: list[float] = []  # the loss of the first start

        def on_progress(_: int, progress: SearchProgress) -> None:
            first.append(progress.loss)
            note = f"loss {progress.loss:.3f} ({starts[0].scheme} {first[0]:.3f})"
            step = f"{step_name}, choosing the winner" if progress.is_over else step_name
            run.on_progress(step, progress.tokens, prepared.total, note)

        return prepared.find(folder / "search", on_progress).extension.long
