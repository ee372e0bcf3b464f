"""The best weights and factors of a run that is not finished."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.formats.load_factors import load_extension
from longrope.models.adapter import merge_adapter
from longrope.models.adapter_folder import CONFIG
from longrope.models.load import load_tokenizer
from longrope.models.merged_adapter import merge_peft
from longrope.scaling import Extension, Scaling
from longrope.stages.run_folder import StagedRun
from longrope.stages.trainer_checkpoints import last_complete_checkpoint


def load_best_so_far(run: StagedRun) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Extension] | None:
    """Load the best model of a run so far, in the dtype of its checkpoint, and its factors.

    It is the last stage that has factors, with its trained weights, those of the last complete checkpoint of its
    training, or those that it begins with. In a search it is the best candidate. It is None before the first one.

    Args:
        run: A run that may have been stopped anywhere.
    """
    path = run.folder / "extension.json"
    if path.exists():
        return *_load(run, run.final_weights, None), load_extension(path)
    for number in range(len(run.plan.stages), 0, -1):
        folder = run.stage_folder(number)
        best = folder / "search" / "best.json"
        if (folder / "extension.json").exists():
            trained = (folder / "model").exists()
            checkpoint = None if trained else last_complete_checkpoint(folder / "training", remove_others=False)
            weights = run.weights(number + 1 if trained else number)
            return *_load(run, weights, checkpoint), load_extension(folder / "extension.json")
        if best.exists():
            long = Scaling.from_json(best.read_text(encoding="utf-8"))
            return *_load(run, run.weights(number), None), Extension.of(run.rope, long)
    return None


def _load(run: StagedRun, weights: str, checkpoint: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load weights, or those of a checkpoint of their training: an adapter for them, or other weights."""
    if checkpoint is not None and not (Path(checkpoint) / CONFIG).is_file():
        load_tokenizer(weights).save_pretrained(checkpoint)
        model, tokenizer = run.load(checkpoint, dtype="float32")
        return model.to(run.config.dtype), tokenizer  # pyright: ignore[reportArgumentType, reportCallIssue]
    model, tokenizer = run.load(weights, dtype="auto")
    if checkpoint is not None:
        merge_peft(model, Path(checkpoint))
    return merge_adapter(model), tokenizer
