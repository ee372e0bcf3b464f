"""The inputs of ``longrope eval``: candidates, documents, prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longrope.cli import distributed, options
from longrope.errors import LongRopeError
from longrope.units import parse_lengths

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from longrope.evaluation.candidate import Candidate
    from longrope.evaluation.measurement import Corpus, SampleSet
    from longrope.rope import Rope
    from longrope.scaling import Extension, Scaling
    from longrope.tasks.prompt_sets import PromptSets


def compared_candidates(
    model: str, rope: Rope, lengths: Sequence[int], schemes: str, factors: Sequence[str], checkpoints: Sequence[str]
) -> dict[str, Candidate]:
    """Return the candidates: the model as it is, schemes, factors (a fine-tuned run with its weights), checkpoints.

    Where texts of up to L0 tokens are measured, the long factors alone of an extension are a candidate too.

    Args:
        model: Name of the model.
        rope: Geometry of the model.
        lengths: Lengths in tokens, ascending. Schemes aim at the longest one.
        schemes: Names of schemes by commas, or none.
        factors: Factors files and run folders.
        checkpoints: Names of other models.
    """
    from dataclasses import replace

    from longrope.schemes import scheme

    names = [] if schemes == "none" else options.parse_schemes(schemes)
    if names and lengths[-1] <= rope.original_length:
        distributed.say("Schemes are left out: no length is above the original one.")
        names = []
    original = _candidate(model)
    candidates = {"original": original}
    candidates |= {name: replace(original, scaling=scheme(name, rope, lengths[-1])) for name in names}
    for path in factors:
        run = options.run_of(path)
        candidate = _candidate(model if run is None else run.final_weights, options.read_factors(path))
        candidates[_new(path, candidates)] = candidate
        alone = candidate.long_alone if lengths[0] <= rope.original_length else None
        if alone is not None and alone.key not in {known.key for known in candidates.values()}:
            name = _new(f"{path} (long factors alone)", candidates)
            candidates[name] = alone
            distributed.say(f"Also a candidate: {name}, which a static export uses at every length.")
    for path in checkpoints:
        candidates[_new(path, candidates)] = _candidate(path)
    return candidates


def _candidate(weights: str, scaling: Scaling | Extension | None = None) -> Candidate:
    """Return a candidate that is measured again where a resumed evaluation finds other weights under the name."""
    from longrope.evaluation.candidate import Candidate
    from longrope.models.weights_digest import weights_digest

    return Candidate(weights, scaling, weights_digest(weights))


def _new(name: str, candidates: Mapping[str, Candidate]) -> str:
    if name in candidates:
        raise LongRopeError(f"candidate = {name!r}: given twice. Write one as another path, such as ./{name}.")
    return name


def read_corpora(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    cache: Path | None,
    text_key: str | None = None,
) -> list[Corpus]:
    """Return the test documents of each source, whose texts are under ``text_key``."""
    from longrope.data.documents import load_documents
    from longrope.data.split import draw_tokens, split_documents
    from longrope.evaluation.measurement import Corpus

    distinct = list(dict.fromkeys(sources))
    short = [short_source(source) for source in distinct]
    corpora = []
    for source, name in zip(distinct, short, strict=True):
        documents = split_documents(load_documents(source, text_key=text_key), seed=seed)["test"]
        drawn = draw_tokens(documents, tokenizer, length=length, count=count, cache=cache)
        corpora.append(Corpus(name if short.count(name) == 1 else source, drawn.tokens, drawn.names))
    return corpora


def tell_searched(factors: Sequence[str], corpora: Sequence[Corpus], seed: int) -> None:
    """Say of which runs the search or the training may have read test documents, as with another seed of the split.

    Args:
        factors: Factors files and run folders.
        corpora: Test documents.
        seed: Seed of the split into search, held-out and test documents.
    """
    from longrope.evaluation.results import read_json

    tested = {name for corpus in corpora for name in corpus.documents}
    for path in map(Path, factors):
        staged = options.run_of(str(path))
        if staged is not None:
            data = staged.plan.data
            sources = {short_source(source) for source in (data.source, data.train) if source}
            if data.seed != seed and sources & {corpus.name for corpus in corpora}:
                distributed.say(
                    f"{path}: its documents were split with the seed {data.seed}, so it may have read some that it is "
                    f"tested on here. Use --data-seed {data.seed}."
                )
        elif (path / "run.json").exists():
            run = read_json(path / "run.json")
            sets = run.get("documents")
            read = {name for names in sets.values() for name in names} & tested if isinstance(sets, dict) else set()
            if read:
                distributed.say(
                    f"{path}: its search has read {len(read)} of the test documents (such as {min(read)}), so its "
                    f"numbers are too good. Use the search's --data and --data-seed {run.get('data_seed', 0)}."
                )


def short_source(source: str) -> str:
    """Return the last part of a path.

    >>> short_source("stdlib:unseen"), short_source("/home/me/texts/")
    ('stdlib:unseen', 'texts')
    """
    return Path(source).name if "/" in source else source


def read_prompts(
    tasks: str | None,
    retrieval_lengths: str | None,
    lengths: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    texts: np.ndarray,
    **draw: Any,
) -> PromptSets:
    """Return the prompts of retrieval tasks at the lengths at which they fit; say where they do not.

    Args:
        tasks: Names of tasks by commas; ``ruler`` stands for RULER's thirteen and ``all`` for every task.
        retrieval_lengths: Lengths by commas; None takes ``lengths``.
        lengths: Lengths of the evaluation in tokens.
        tokenizer: The model's tokenizer.
        texts: Real documents, ``(documents, at least the longest length)``.
        **draw: Further arguments of `make_prompt_sets`.

    Raises:
        LongRopeError: If a task does not exist or fits at no length, or a length is above the longest.
    """
    from longrope.tasks.prompt_sets import make_prompt_sets
    from longrope.tasks.registry import task_names

    chosen = parse_lengths(retrieval_lengths, "retrieval_lengths") if retrieval_lengths else lengths
    if chosen[-1] > lengths[-1]:
        raise LongRopeError(
            f"retrieval_lengths = {chosen[-1]}: above the longest of lengths, {lengths[-1]}. Add it to lengths."
        )
    if tasks is None:
        return {}
    requested = [name.strip() for name in tasks.split(",")]
    names = task_names(requested)
    prompts, refusals = make_prompt_sets(names, chosen, tokenizer, texts, require_each=names == requested, **draw)
    for refusal in refusals:
        distributed.say(f"Left out: {refusal}")
    return prompts


def parse_depths(text: str) -> list[float]:
    """Return numbers from 0 to 1 written with commas.

    Raises:
        LongRopeError: If one is not.
    """
    try:
        depths = [float(number) for number in text.split(",")]
    except ValueError:
        depths = []
    if not depths or not all(0 <= depth <= 1 for depth in depths):
        raise LongRopeError(f"depths = {text!r}: not numbers from 0 to 1 by commas. Write 0,0.5,1.")
    return depths


def harness_tasks(
    tasks: str | None, folder: Path | None, *, limit: int | None, batch: int, length: int
) -> SampleSet | None:
    """Return the sample that runs tasks of lm-evaluation-harness; None without tasks.

    Raises:
        LongRopeError: This process is one of several, or the harness cannot run the tasks.
    """
    if tasks is None:
        return None
    if distributed.count() > 1:
        raise LongRopeError("tasks: lm-evaluation-harness runs in one process; leave --tasks out of this launch")
    from longrope.evaluation.lm_eval import harness

    names = [name.strip() for name in tasks.split(",")]
    return harness(names, folder=folder, limit=limit, batch=batch, length=length)
