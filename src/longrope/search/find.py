"""Find the factors of one length: search on some documents, choose the winner on others."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import COMPARED, scheme
from longrope.search.budget import Budget, too_small
from longrope.search.evaluator import Evaluator
from longrope.search.journal import Journal
from longrope.search.loop import SearchOutcome, SearchProgress, run_search
from longrope.search.protocol import CandidateBatch, Objective
from longrope.search.registry import Method
from longrope.search.space import Space
from longrope.storage.atomic import write_text

OUTPUTS = ("search-*.jsonl", "held-out.jsonl", "best.json", "extension.json", "run.json")
FINALISTS = 3


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the extension, and the held-out losses that decided, by name, best first."""

    extension: Extension
    held_out: Mapping[str, float]
    outcomes: tuple[SearchOutcome, ...]


def find_factors(
    space: Space,
    connect: Callable[[Sequence[WeightedText]], Objective],
    search_items: Sequence[WeightedText],
    held_out_items: Sequence[WeightedText],
    run: Path,
    *,
    method: Method,
    starts: Sequence[Scaling],
    compared: Sequence[Scaling] | None = None,
    seeds: Sequence[int] = (0,),
    budget: Budget | None = None,
    rows: int = 1,
    racing: bool = False,
    existing: str = "refuse",
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    watch: Callable[[int, SearchProgress], None] | None = None,
) -> SearchResult:
    """Search a space and keep everything in a folder.

    The finalists of all seeds (the best candidates, and the best of each search's first half, in case the second half
    only learnt the search documents by heart), the closed-form schemes and the starts are then compared on the held-out
    items; the best there is the winner. The folder gets one journal a seed, ``best.json`` (the best candidate so far,
    at any time), and in the end ``extension.json``.

    Args:
        space: what may be chosen.
        connect: makes the objective of some items: on a model in this process, or on `Workers`.
        search_items: what the search minimises the mean loss of.
        held_out_items: the same from other documents.
        run: the folder.
        method: one of `METHODS`.
        starts: factors that the search starts from, such as those of ``method.starts``.
        compared: other factors that may win, judged on the held-out items; the schemes `COMPARED` if None.
        seeds: one search each.
        budget: when to stop early, each.
        rows: (candidate, item) pairs in one forward pass.
        racing: whether candidates that are clearly worse after some items are dropped.
        existing: what to do with a run that the folder holds: ``refuse``, ``resume`` or ``overwrite``.
        settings: what else decides the losses (model name, dtype …), for the journal.
        provenance: what else to keep with the factors (command, data …).
        watch: called with the seed and the progress.

    Raises:
        LongRopeError: if the folder holds a run that is refused, or one to resume with other settings; if the budget
            is smaller than one step; nothing is written then.
    """
    once = sum(len(item.tokens) for item in search_items)
    if budget is not None and budget.tokens is not None and budget.tokens < once:
        raise too_small(budget.tokens, once)
    kind = {type(method).__name__: asdict(method)}  # pyright: ignore[reportArgumentType]
    # not the rows: lowering them is how a run goes on after it was out of memory
    common = {**(settings or {}), "method": kind, "space": asdict(space), "racing": racing}
    common["starts"] = [f"{start.scheme} {_digest(np.array(start.factors))[:8]}" for start in starts]
    hashes = {"search": data_hash(search_items), "held_out": data_hash(held_out_items)}
    resume = existing == "resume"
    if existing == "overwrite":
        for old in (path for pattern in OUTPUTS for path in run.glob(pattern)):
            old.unlink()
    outcomes: list[SearchOutcome] = []
    objective = connect(search_items)
    for seed in seeds:
        fixed = {**common, "data": hashes["search"], "seed": seed}
        with closing(Journal(run / f"search-{seed}.jsonl", fixed, resume=resume)) as journal:
            told = _keep_best(run, outcomes, partial(watch, seed) if watch else None)
            conversation = method.converse(space, starts, np.random.default_rng(seed))
            outcomes.append(
                run_search(objective, conversation, journal, budget=budget, rows=rows, racing=racing, watch=told)
            )
    fixed = {**common, "data": hashes["held_out"]}
    if compared is None:
        compared = [scheme(name, space.rope, space.length) for name in COMPARED]
    judged = list(dict.fromkeys([*_finalists(outcomes), *compared, *starts]))
    with closing(Journal(run / "held-out.jsonl", fixed, resume=resume)) as journal:
        evaluator = Evaluator(connect(held_out_items), journal, budget=Budget(), rows=rows)
        losses = [answer.loss for answer in evaluator.answers(CandidateBatch(judged))]
    kept = {**(settings or {}), **(provenance or {}), "method": kind, "seeds": list(seeds), "data_hash": hashes}
    return _decide(space.rope, list(zip(losses, judged, strict=True)), outcomes, run, kept)


def _keep_best(
    run: Path, before: Sequence[SearchOutcome], watch: Callable[[SearchProgress], None] | None
) -> Callable[[SearchProgress], None]:
    """What writes ``best.json`` whenever a candidate is better than all others, those of earlier seeds included."""
    lowest = min((outcome.ranked[0][0] for outcome in before), default=np.inf)

    def told(progress: SearchProgress) -> None:
        nonlocal lowest
        if progress.loss < lowest:
            lowest = progress.loss
            write_text(run / "best.json", progress.best.to_json())
        if watch is not None:
            watch(progress)

    return told


def data_hash(items: Sequence[WeightedText]) -> str:
    """A fingerprint of token ids, weights and positions."""
    parts = [array for item in items for array in (item.tokens, item.weights, item.positions) if array is not None]
    return _digest(*parts)


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def _finalists(outcomes: Sequence[SearchOutcome]) -> list[Scaling]:
    """The best of all searches, and the best that each had after half of its token-evaluations."""
    ranked = sorted((one for outcome in outcomes for one in outcome.ranked), key=lambda one: one[0])
    best = list(dict.fromkeys(scaling for loss, scaling in ranked if np.isfinite(loss)))[:FINALISTS]
    early = [
        [record.scaling for record in outcome.records if 2 * record.tokens <= outcome.tokens][-1:]
        for outcome in outcomes
    ]
    return list(dict.fromkeys([*best, *(one for found in early for one in found)]))


def _decide(
    rope: Rope,
    held_out: Sequence[tuple[float, Scaling]],
    outcomes: Sequence[SearchOutcome],
    run: Path,
    kept: Mapping[str, Any],
) -> SearchResult:
    """The extension with the lowest held-out loss, also written to ``extension.json``."""
    ranked = sorted(held_out, key=lambda one: one[0])
    if not np.isfinite(ranked[0][0]):
        raise LongRopeError("no finalist has a finite loss on the held-out documents; try dtype float32")
    winner, best = ranked[0][1], {}
    for loss, scaling in ranked:
        best.setdefault(scaling.scheme, loss)
    provenance = {
        **kept,
        "evaluations": sum(len(outcome.ranked) for outcome in outcomes),
        "token_evaluations": sum(outcome.tokens for outcome in outcomes),
        "search_loss": min(outcome.ranked[0][0] for outcome in outcomes),
        "held_out_loss": {name: loss for name, loss in best.items() if np.isfinite(loss)},
    }
    extension = Extension.of(rope, replace(winner, provenance=provenance))
    write_text(run / "extension.json", extension.to_json())
    return SearchResult(extension, best, tuple(outcomes))
