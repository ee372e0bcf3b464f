"""Find the factors of one length: search on some samples, choose the winner on others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from longrope.errors import LongRopeError, suspect
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import COMPARED, scheme
from longrope.search.budget import Budget
from longrope.search.evaluator import Evaluator
from longrope.search.journal import ROUNDING, Journal
from longrope.search.leaders import evaluate_leaders
from longrope.search.loop import SearchOutcome, SearchProgress, run_search
from longrope.search.method import Method
from longrope.search.protocol import CandidateBatch, context_tokens, release_contexts
from longrope.search.run import SearchObjectives, SearchResult, SearchRun, digest
from longrope.search.space import Space
from longrope.storage.atomic import write_text
from longrope.storage.jsonl import read_settings

OUTPUTS = ("search-*.jsonl", "held-out.jsonl", "best.json", "extension.json", "run.json")
FINALISTS = 3  # one where frozen contexts rank the others


def find_factors(
    space: Space,
    objectives: SearchObjectives,
    folder: str | Path,
    *,
    method: Method,
    starts: Sequence[Scaling],
    compared: Sequence[Scaling] | None = None,
    run: SearchRun | None = None,
    on_progress: Callable[[int, SearchProgress], None] | None = None,
) -> SearchResult:
    """Search a space and keep everything in a folder.

    The finalists, the closed-form schemes and the starts are compared on the held-out objective, and the best of them
    wins. Where it has frozen contexts, the best finalist gets a full pass, and the three that are best in its contexts.
    Starts that were only ranked in frozen contexts are left out. Finalists are the best candidate of all seeds together
    (without frozen contexts the best `FINALISTS`), and the best of each search's first half, in case the second half
    only memorised the search documents.

    The folder gets one journal for each seed, ``best.json`` (the best candidate so far, at any time), and in the end
    ``extension.json``.

    Args:
        space: Space to search.
        objectives: Objectives to minimise and to choose the winner by, a `longrope.search.run.SearchObjectives`.
        folder: Folder of the run.
        method: Search method, such as one of `METHODS`.
        starts: Candidates that the search starts from, such as those of ``method.schemes``.
        compared: Other candidates for the held-out objective; None for the schemes `COMPARED`.
        run: Seeds, budget and records of the run, a `longrope.search.run.SearchRun`; None for the defaults.
        on_progress: Function called with the seed and the progress after every batch, and before the winner is chosen.

    Raises:
        LongRopeError: If the folder holds a run that is refused, or one to resume with other settings, or the budget
            is smaller than one step. Nothing is written then.
    """
    run, folder = run or SearchRun(), Path(folder)
    run.budget.check_step(sum(objectives.search.tokens))
    settings = _settings(space, method, starts, run)
    if method.uses_contexts:  # a resumed search must have them, or not, as the one that began it
        settings["frozen_contexts"] = bool(context_tokens(objectives.search))
    judges_in_contexts = settings.get("frozen_contexts", False) and bool(context_tokens(objectives.held_out))
    resume = run.existing == "resume"
    if run.existing == "overwrite":
        for path in (path for pattern in OUTPUTS for path in folder.glob(pattern)):
            path.unlink()
    outcomes: list[SearchOutcome] = []
    for seed in run.seeds:
        header = {**settings, "data": objectives.hashes["search"], "seed": seed}
        with closing(Journal(folder / f"search-{seed}.jsonl", header, resume=resume)) as journal:
            outcome = run_search(
                objectives.search,
                method.propose(space, starts, np.random.default_rng(seed)),
                journal,
                budget=run.budget,
                batch_size=run.batch_size,
                racing=run.racing,
                on_progress=_best_writer(folder, outcomes, partial(on_progress, seed) if on_progress else None),
            )
        outcomes.append(outcome)
    if on_progress is not None:
        on_progress(run.seeds[-1], _end_of_search(outcomes))
    if compared is None:
        compared = [scheme(name, space.rope, space.length) for name in COMPARED]
    release_contexts(objectives.search)  # the held-out objective decided when none were kept, and needs their memory
    if settings.get("frozen_contexts"):
        starts = _fully_evaluated(starts, space, outcomes)
    best = _finalists(outcomes, 1 if judges_in_contexts else FINALISTS)
    finalists = list(dict.fromkeys([*best, *compared, *starts]))
    path, header = folder / "held-out.jsonl", {**settings, "data": objectives.hashes["held_out"]}
    written = read_settings(path)
    if method.uses_contexts and (not written or "held_out_contexts" in written):  # an older file does not say
        header["held_out_contexts"] = judges_in_contexts
    with closing(Journal(path, header, resume=resume)) as journal:
        evaluator = Evaluator(objectives.held_out, journal, budget=Budget(), batch_size=run.batch_size)
        losses = _judge(finalists, evaluator, in_contexts=judges_in_contexts)
    provenance = {**run.settings, **run.provenance, "method": settings["method"], "seeds": list(run.seeds)}
    provenance["data_hash"] = dict(objectives.hashes)
    result = _choose_winner(space.rope, losses, outcomes, provenance)
    write_text(folder / "extension.json", result.extension.to_json())
    return result


def _settings(space: Space, method: Method, starts: Sequence[Scaling], run: SearchRun) -> dict[str, Any]:
    """Return the settings for the journals, without the batch size.

    Lowering the batch size is how a run continues after it ran out of memory.
    """
    settings = {**run.settings, "method": {type(method).__name__: asdict(method)}}  # pyright: ignore[reportArgumentType]
    settings |= {"space": asdict(space), "racing": run.racing}
    # rounded, as another processor may compute the last digits of a scheme in another way
    settings["starts"] = [
        f"{start.scheme} {digest(np.array([f'{factor:.9g}' for factor in start.factors]))[:8]}" for start in starts
    ]
    return settings


def _best_writer(
    folder: Path, earlier: Sequence[SearchOutcome], on_progress: Callable[[SearchProgress], None] | None
) -> Callable[[SearchProgress], None]:
    """Return a callback that writes ``best.json`` whenever a candidate is better than all others of all seeds."""
    lowest = min((outcome.ranked[0][0] for outcome in earlier), default=np.inf)

    def report(progress: SearchProgress) -> None:
        nonlocal lowest
        if progress.loss < lowest:
            lowest = progress.loss
            write_text(folder / "best.json", progress.best.to_json())
        if on_progress is not None:
            on_progress(progress)

    return report


def _end_of_search(outcomes: Sequence[SearchOutcome]) -> SearchProgress:
    """Return the progress before the winner is chosen: the best candidate of all seeds, the costs of the last one."""
    loss, best = min((outcome.ranked[0] for outcome in outcomes), key=lambda pair: pair[0])
    last = outcomes[-1]
    return SearchProgress(0, len(last.ranked), last.tokens, best, loss, last.seconds, is_over=True)


def _finalists(outcomes: Sequence[SearchOutcome], count: int = FINALISTS) -> list[Scaling]:
    """Return the best candidates of all searches, and the best that each had after half of its token-evaluations."""
    ranked = sorted((pair for outcome in outcomes for pair in outcome.ranked), key=lambda pair: pair[0])
    best = list(dict.fromkeys(scaling for loss, scaling in ranked if np.isfinite(loss)))[:count]
    for outcome in outcomes:
        first_half = [step for step in outcome.improvements if 2 * step.tokens <= outcome.tokens]
        best += [step.scaling for step in first_half[-1:]]
    return list(dict.fromkeys(best))


def _judge(finalists: Sequence[Scaling], evaluator: Evaluator, *, in_contexts: bool) -> dict[Scaling, float]:
    """Return the loss of the finalists on held-out samples; in contexts, of those that need a full pass."""
    if not in_contexts:
        losses = evaluator.evaluate(CandidateBatch(finalists))
        return {scaling: loss.loss for scaling, loss in zip(finalists, losses, strict=True)}
    proposals = evaluate_leaders(finalists)
    with suppress(StopIteration):
        batch = next(proposals)
        while True:
            batch = proposals.send(evaluator.evaluate(batch))
    return {scaling: evaluator.mean_losses[scaling] for scaling in finalists if scaling in evaluator.mean_losses}


def _fully_evaluated(starts: Sequence[Scaling], space: Space, outcomes: Sequence[SearchOutcome]) -> Sequence[Scaling]:
    """Return the starts but those that were only ranked in frozen contexts."""
    evaluated = np.array([scaling.factors for outcome in outcomes for _, scaling in outcome.ranked])

    def is_evaluated(start: Scaling) -> bool:
        factors = space.candidate(space.coordinates(start)).factors
        return bool(np.isclose(evaluated, factors, rtol=ROUNDING, atol=0).all(axis=1).any())

    return [start for start in starts if is_evaluated(start)]


def _choose_winner(
    rope: Rope,
    held_out: Mapping[Scaling, float],
    outcomes: Sequence[SearchOutcome],
    provenance: Mapping[str, Any],
) -> SearchResult:
    """Return the result with the extension that has the lowest held-out loss."""
    ranked = sorted(((loss, scaling) for scaling, loss in held_out.items()), key=lambda pair: pair[0])
    if not np.isfinite(ranked[0][0]):
        reason = suspect(str(provenance.get("dtype", "")))
        raise LongRopeError(f"no finalist has a finite loss on the held-out documents. {reason}")
    losses: dict[str, float] = {}
    for loss, scaling in ranked:
        losses.setdefault(scaling.scheme, loss)
    record = {
        **provenance,
        "evaluations": sum(len(outcome.ranked) for outcome in outcomes),
        "token_evaluations": sum(outcome.tokens for outcome in outcomes),
        "closed_form": min(outcomes, key=lambda outcome: outcome.ranked[0][0]).closed_form,
        "search_loss": min(outcome.ranked[0][0] for outcome in outcomes),
        "held_out_loss": {name: loss if np.isfinite(loss) else None for name, loss in losses.items()},
    }
    extension = Extension.of(rope, replace(ranked[0][1], provenance=record))
    return SearchResult(extension, losses, tuple(outcomes))
