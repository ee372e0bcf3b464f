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
from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.evaluation.objective import perplexity_objective
from longrope.files import write_text
from longrope.models.rotary import find_rotary
from longrope.rope import Extension, Rope, Scaling
from longrope.schemes import COMPARED, attention_factor, scheme
from longrope.search.evolution import Paper, Simple
from longrope.search.journal import Journal
from longrope.search.run import Budget, Outcome, Progress, search
from longrope.search.space import Space

OUTPUTS = ("search-*.jsonl", "held-out.jsonl", "best.json", "extension.json", "run.json")
FINALISTS = 3


@dataclass(frozen=True)
class Found:
    """What a search found: the extension, and the held-out losses that decided, by name, best first."""

    extension: Extension
    held_out: Mapping[str, float]
    outcomes: tuple[Outcome, ...]


def find_factors(
    model: PreTrainedModel,
    search_tokens: np.ndarray,
    held_out_tokens: np.ndarray,
    run: Path,
    *,
    method: Paper | Simple,
    starts: Sequence[str] = ("pi", "ntk", "yarn"),
    seeds: Sequence[int] = (0,),
    attention: str | float = "su",
    start_tokens: tuple[int, ...] = (0,),
    budget: Budget | None = None,
    batch: int = 1,
    existing: str = "refuse",
    settings: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    watch: Callable[[int, float, Progress], None] | None = None,
) -> Found:
    """Search factors for the length of the given tokens and keep everything in a folder.

    The finalists of all seeds and the closed-form schemes are then compared on the held-out documents; the best there
    is the winner. The folder gets one journal a seed, ``best.json`` (the best candidate so far, at any time),
    and in the end ``extension.json``.

    Args:
        model: a causal language model.
        search_tokens: ``(documents, length)``, what the search minimises the loss of.
        held_out_tokens: ``(documents, length)``, other documents.
        run: the folder.
        method: one of ``PRESETS``.
        starts: schemes that the first generation is made from.
        seeds: one search each.
        attention: policy of `attention_factor`.
        start_tokens: the numbers of start tokens that may be chosen.
        budget: when to stop early.
        batch: documents in one forward pass.
        existing: what to do with a run that the folder holds: ``refuse``, ``resume`` or ``overwrite``.
        settings: what else decides the losses (model name, dtype …), for the journal.
        provenance: what else to keep with the factors (command, data …).
        watch: called with the seed, the search loss of YaRN and the progress.

    Raises:
        LongRopeError: if the folder holds a run that is refused, or one to resume with other settings.
    """
    rope, length = find_rotary(model).rope, search_tokens.shape[1]
    factor = attention_factor(attention, rope, length)
    space = Space(rope, length, attention_factor=factor, start_tokens=start_tokens, ceiling=method.ceiling)
    schemes = {name: scheme(name, rope, length) for name in {*COMPARED, *starts}}
    common = {**(settings or {}), "space": asdict(space), "method": {type(method).__name__: asdict(method)}}
    common["starts"] = list(starts)  # not the batch: lowering it is how a run goes on after it was out of memory
    objective, minimised = perplexity_objective(model, search_tokens, batch=batch), data_hash(search_tokens)
    resume = existing == "resume"
    if existing == "overwrite":
        for old in (path for pattern in OUTPUTS for path in run.glob(pattern)):
            old.unlink()
    outcomes: list[Outcome] = []
    for seed in seeds:
        fixed = {**common, "data": minimised, "seed": seed}
        with closing(Journal(run / f"search-{seed}.jsonl", fixed, resume=resume)) as journal:
            against, _ = journal.evaluate(schemes["yarn"], objective)
            told = _keep_best(run, outcomes, partial(watch, seed, against) if watch else None)
            rng = np.random.default_rng(seed)
            candidates = method.candidates(space, [schemes[name] for name in starts], rng)
            outcomes.append(search(objective, candidates, rng, journal, budget=budget, watch=told))
    fixed = {**common, "data": data_hash(held_out_tokens)}
    compared = [*_finalists(outcomes), *(schemes[name] for name in COMPARED)]
    objective = perplexity_objective(model, held_out_tokens, batch=batch)
    with closing(Journal(run / "held-out.jsonl", fixed, resume=resume)) as journal:
        held_out = [(journal.evaluate(scaling, objective)[0], scaling) for scaling in compared]
    hashes = {"search": minimised, "held_out": fixed["data"]}
    kept = {**(settings or {}), **(provenance or {}), "seeds": list(seeds), "data_hash": hashes}
    return _decide(rope, held_out, outcomes, run, kept)


def _keep_best(
    run: Path, before: Sequence[Outcome], watch: Callable[[Progress], None] | None
) -> Callable[[Progress], None]:
    """What writes ``best.json`` whenever a candidate is better than all others, those of earlier seeds included."""
    lowest = min((outcome.ranked[0][0] for outcome in before), default=np.inf)

    def told(progress: Progress) -> None:
        nonlocal lowest
        if progress.loss < lowest:
            lowest = progress.loss
            write_text(run / "best.json", progress.best.to_json())
        if watch is not None:
            watch(progress)

    return told


def data_hash(tokens: np.ndarray) -> str:
    """A fingerprint of token ids."""
    return hashlib.sha256(np.ascontiguousarray(tokens).tobytes()).hexdigest()[:16]


def _finalists(outcomes: Sequence[Outcome]) -> list[Scaling]:
    ranked = sorted((one for outcome in outcomes for one in outcome.ranked), key=lambda one: one[0])
    distinct = dict.fromkeys(scaling for loss, scaling in ranked if np.isfinite(loss))
    return list(distinct)[:FINALISTS]


def _decide(
    rope: Rope,
    held_out: Sequence[tuple[float, Scaling]],
    outcomes: Sequence[Outcome],
    run: Path,
    kept: Mapping[str, Any],
) -> Found:
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
        "search_perplexity": float(np.exp(min(outcome.ranked[0][0] for outcome in outcomes))),
        "held_out_perplexity": {name: float(np.exp(loss)) for name, loss in best.items() if np.isfinite(loss)},
    }
    extension = Extension.of(rope, replace(winner, provenance=provenance))
    write_text(run / "extension.json", extension.to_json())
    return Found(extension, best, tuple(outcomes))
