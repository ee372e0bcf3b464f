"""What ``longrope eval`` compares, and on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.cli import distributed, options
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from longrope.evaluation.measurements import Corpus, Measurement
    from longrope.evaluation.runner import Candidate
    from longrope.rope import Rope
    from longrope.tasks.prompt_sets import PromptSets


def compared_rows(
    model: str, rope: Rope, length: int, schemes: str, scalings: Sequence[str], checkpoints: Sequence[str]
) -> dict[str, Candidate]:
    """The model as it is, schemes at a length, factors (of a run that fine-tuned, with its weights), checkpoints."""
    from longrope.evaluation.runner import Candidate
    from longrope.schemes import scheme
    from longrope.stages.run_folder import open_run

    names = [] if schemes == "none" else options.parse_schemes(schemes)
    if names and length <= rope.original_length:
        distributed.say("Schemes are left out: no length is above the original one.")
        names = []
    rows = {"original": Candidate(model)} | {name: Candidate(model, scheme(name, rope, length)) for name in names}
    for path in scalings:
        weights = model
        if (Path(path) / "plan.toml").exists():
            run = open_run(Path(path))
            weights = run.final_weights
        rows[_new(path, rows)] = Candidate(weights, options.read_factors(path))
    for path in checkpoints:
        rows[_new(path, rows)] = Candidate(path)
    return rows


def _new(name: str, rows: Mapping[str, Candidate]) -> str:
    if name in rows:
        raise LongRopeError(f"row = {name!r} is there twice; write one as another path, such as ./{name}")
    return name


def read_corpora(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    cache: Path | None,
) -> list[Corpus]:
    """The test documents of each source."""
    from longrope.data.documents import load_documents
    from longrope.data.split import draw_tokens, split_documents
    from longrope.evaluation.measurements import Corpus

    found, short = [], [short_source(source) for source in dict.fromkeys(sources)]
    for source, name in zip(dict.fromkeys(sources), short, strict=True):
        parts = split_documents(load_documents(source), seed=seed)
        drawn = draw_tokens(parts["test"], tokenizer, length=length, count=count, cache=cache)
        found.append(Corpus(name if short.count(name) == 1 else source, drawn.tokens, drawn.names))
    return found


def short_source(source: str) -> str:
    """Of a path, its last part.

    >>> short_source("stdlib:unseen"), short_source("/home/me/texts/")
    ('stdlib:unseen', 'texts')
    """
    return Path(source).name if "/" in source else source


def read_probes(
    tasks: str | None, lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase, texts: np.ndarray, **how: Any
) -> PromptSets:
    """The probes of retrieval tasks at the lengths at which they fit; says where they do not.

    Raises:
        LongRopeError: if there is no such task, or one fits at no length.
    """
    from longrope.tasks.prompt_sets import make_prompt_sets
    from longrope.tasks.registry import TASKS

    if tasks is None:
        return {}
    names = list(TASKS) if tasks == "all" else [name.strip() for name in tasks.split(",")]
    found, refusals = make_prompt_sets(names, lengths, tokenizer, texts, some=tasks == "all", **how)
    for said in refusals:
        distributed.say(f"Left out: {said}")
    return found


def parse_depths(text: str) -> list[float]:
    """Numbers from 0 to 1 by commas.

    Raises:
        LongRopeError: if one is not.
    """
    try:
        depths = [float(part) for part in text.split(",")]
    except ValueError:
        depths = []
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise LongRopeError(f"depths = {text!r} must be numbers from 0 to 1 by commas, such as 0,0.5,1")
    return depths


def harness_parts(
    tasks: str | None, folder: Path | None, *, limit: int | None, batch: int, length: int
) -> list[Measurement]:
    """The part that runs lm-evaluation-harness, if a task of it is wanted."""
    if tasks is None:
        return []
    from longrope.evaluation.lm_eval import harness

    names = [name.strip() for name in tasks.split(",")]
    return [harness(names, folder=folder, limit=limit, batch=batch, length=length)]


def check_rows(
    rows: Mapping[str, Candidate],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    *,
    batch: int,
    dtype: str,
    device: str,
) -> None:
    """Refuse, before any model is loaded, what cannot be compared or measured.

    Raises:
        LongRopeError: if factors are another model's, a model reads other tokens than the first, or has no room.
    """
    from longrope.cost.memory_check import Placement, check_pass_memory
    from longrope.data.tokenize import fingerprint
    from longrope.models.load import load_config, load_tokenizer
    from longrope.rope import Rope
    from longrope.scaling import check_rope

    configs = {weights: load_config(weights) for weights in dict.fromkeys(row.weights for row in rows.values())}
    for weights, config in configs.items():
        check_pass_memory(config, length, Placement(dtype, device, processes=distributed.here()), batch=batch)
        if fingerprint(load_tokenizer(weights)) != fingerprint(tokenizer):
            raise LongRopeError(
                f"{weights} has another tokenizer: perplexity of other tokens cannot be compared; evaluate it alone"
            )
    for name, row in rows.items():
        if row.factors is None:
            continue
        rope = Rope.of(configs[row.weights])
        if rope != (own := Rope.of(configs[rows["original"].weights])):
            raise LongRopeError(f"{name}: its model has {rope}, but the one compared with has {own}; evaluate it alone")
        check_rope(row.factors, rope, name)


def claim_results(folder: Path | None, *, resume: bool, overwrite: bool) -> None:
    """Make sure that an evaluation may be written into a folder, or goes on there.

    Raises:
        LongRopeError: if it holds one and may not, or something else.
    """
    from longrope.evaluation.runner import JOURNAL
    from longrope.storage.lock import LOCK, claim_output

    if folder is not None:
        options.refuse_run(folder)
        begun = (folder / JOURNAL).exists()
        if not begun and overwrite and folder.is_dir() and any(one.name != LOCK for one in folder.iterdir()):
            raise LongRopeError(f"{folder} holds no evaluation; choose another output with -o")
        claim_output(
            folder, overwrite=begun and (resume or overwrite), folder=True, also="continue it with --resume, " * begun
        )
    elif resume:
        raise LongRopeError("resume: say which folder with -o")
