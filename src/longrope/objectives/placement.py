"""The dtype of a search on a model given by name, and whether its device is there and its passes fit into memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedConfig

from longrope.cost.choose_dtype import choose_dtype, recorded_dtype
from longrope.cost.memory_check import Placement, check_pass_memory
from longrope.models.load import check_device
from longrope.objectives.backend import processes
from longrope.objectives.frozen_samples import LARGEST_COST, expected_cost
from longrope.rope import Rope
from longrope.search.method import Method
from longrope.search.options import SearchOptions


def place_search(
    config: PreTrainedConfig, length: int, method: Method, options: SearchOptions, output: Path | None = None
) -> tuple[SearchOptions, str]:
    """Choose the dtype of a search, and refuse a device that is not there and passes that do not fit into memory.

    Workers on other machines choose for themselves: their devices, memory and processors are unknown here.

    Args:
        config: Config of the model, with the L0 of the options.
        length: Target length in tokens.
        method: The search method.
        options: Options of the search.
        output: Folder of the run. A search that resumes keeps the dtype that its journal was begun with.

    Returns:
        The options with the dtype, and a sentence that says why it is not the checkpoint's; else "".

    Raises:
        LongRopeError: If the device is not there, or a pass does not fit, as in `check_pass_memory`.
    """
    workers = processes(options.workers)
    if not workers:
        return options, ""
    check_device(options.device)
    tokens = min(length, options.text_spec(length).window or length)
    if options.keep_short is not None:
        tokens = max(tokens, Rope.of(config).original_length)  # of a short text
    in_contexts = method.uses_contexts and workers == 1
    in_contexts = in_contexts and expected_cost(tokens, options.needles) <= LARGEST_COST * tokens

    def check_memory(dtype: str) -> None:
        placement = Placement(dtype, options.device, workers=workers)
        check_pass_memory(config, tokens, placement, batch=1 if in_contexts else options.batch_size)
        if method.uses_gradient:
            check_pass_memory(config, tokens, placement, kind="gradient")

    resumed = output if options.existing == "resume" else None
    recorded = None if resumed is None else recorded_dtype(resumed / "search-0.jsonl")
    dtype, reason = choose_dtype(options.dtype, config, options.device, check_memory, recorded=recorded)
    check_memory(dtype)
    return replace(options, dtype=dtype), reason
