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

from longrope.evaluation.objective import perplexity_objective
from longrope.files import write_text
from longrope.rope import Extension, Rope, Scaling
from longrope.schemes import attention_factor, scheme
from longrope.search.evolution import Paper, Simple
from longrope.search.journal import Journal
from longrope.search.run import Outcome, Progress, search
from longrope.search.space import Space

SCHEMES = ("pi", "ntk", "yarn", "heuristic")
FINALISTS = 3


@dataclass(frozen=True)
class Budget:
    """When a search stops early (see `search`); None is never. Each seed has its own."""

    budget: int | None = None
    seconds: float | None = None
    patience: int | None = None


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
    resume: bool = False,
    settings: Mapping[str, Any] | None = None,
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
        resume: continue what the folder holds.
        settings: what else decides the losses (model name, dtype …), for the journal.
        watch: called with the seed, the search loss of YaRN and the progress.

    Raises:
        LongRopeError: if the folder holds a run already and ``resume`` is False, or one with other settings.
    """
    rope, length, budget = Rope.of(model), search_tokens.shape[1], budget or Budget()
    factor = attention_factor(attention, rope, length)
    space = Space(rope, length, attention_factor=factor, start_tokens=start_tokens, ceiling=method.ceiling)
    schemes = {name: scheme(name, rope, length) for name in {*SCHEMES, *starts}}
    common = {**(settings or {}), "space": asdict(space), "method": {type(method).__name__: asdict(method)}}
    common["starts"] = list(starts)
    objective, minimised = perplexity_objective(model, search_tokens, batch=batch), data_hash(search_tokens)
    outcomes: list[Outcome] = []
    for seed in seeds:
        fixed = {**common, "data": minimised, "seed": seed}
        with closing(Journal(run / f"search-{seed}.jsonl", fixed, resume=resume)) as journal:
            against, _ = journal.evaluate(schemes["yarn"], objective)
            told = _keep_best(run, outcomes, partial(watch, seed, against) if watch else None)
            rng = np.random.default_rng(seed)
            candidates = method.candidates(space, [schemes[name] for name in starts], rng)
            outcomes.append(search(objective, candidates, rng, journal, **asdict(budget), watch=told))
    fixed = {**common, "data": data_hash(held_out_tokens), "seeds": list(seeds)}
    compared = [*_finalists(outcomes), *(schemes[name] for name in SCHEMES)]
    objective = perplexity_objective(model, held_out_tokens, batch=batch)
    with closing(Journal(run / "held-out.jsonl", fixed, resume=resume)) as journal:
        held_out = [(journal.evaluate(scaling, objective)[0], scaling) for scaling in compared]
    return _decide(rope, held_out, outcomes, run, {**(settings or {}), "seeds": list(seeds)})


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
    return [scaling for loss, scaling in ranked[:FINALISTS] if np.isfinite(loss)]


def _decide(
    rope: Rope,
    held_out: Sequence[tuple[float, Scaling]],
    outcomes: Sequence[Outcome],
    run: Path,
    settings: Mapping[str, Any],
) -> Found:
    """The extension with the lowest held-out loss, also written to ``extension.json``."""
    _, winner = min(held_out, key=lambda one: one[0])
    best = {}
    for loss, scaling in sorted(held_out, key=lambda one: one[0]):
        best.setdefault(scaling.scheme, loss)
    provenance = {
        **settings,
        "evaluations": sum(len(outcome.ranked) for outcome in outcomes),
        "search_perplexity": float(np.exp(min(outcome.ranked[0][0] for outcome in outcomes))),
        "held_out_perplexity": {name: float(np.exp(loss)) for name, loss in best.items()},
    }
    extension = Extension.of(rope, replace(winner, provenance=provenance))
    write_text(run / "extension.json", extension.to_json())
    return Found(extension, best, tuple(outcomes))
