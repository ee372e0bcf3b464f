"""Make a search ready to run: texts, space, starts and budget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from longrope.checks import check_vocabulary
from longrope.data.documents import Source, load_documents, source_name
from longrope.data.search_texts import search_texts
from longrope.data.split import split_documents
from longrope.data.weighted_text import WeightedText
from longrope.errors import LongRopeError
from longrope.objectives.backend import EvaluationBackend
from longrope.objectives.full_passes import objectives_as_before
from longrope.objectives.keep_short import KeepShort, kept_short, short_texts
from longrope.objectives.starts import make_schemes, make_space, make_starts
from longrope.provenance import provenance
from longrope.rope import Rope
from longrope.scaling import Scaling
from longrope.schemes import COMPARED
from longrope.search.evaluator import no_gradient
from longrope.search.find import find_factors
from longrope.search.loop import SearchProgress
from longrope.search.method import Method
from longrope.search.options import SearchOptions
from longrope.search.protocol import FunctionObjective, Objective, context_tokens
from longrope.search.registry import fit_to_budget, gradient_free
from longrope.search.run import SearchObjectives, SearchResult, SearchRun
from longrope.search.space import Space
from longrope.storage.atomic import write_json

log = logging.getLogger("longrope")
OnProgress = Callable[[int, SearchProgress], None]
Function = Callable[[Scaling], float]


@dataclass(frozen=True)
class PreparedSearch:
    """A search that is ready to run.

    Args:
        space: Space to search.
        objectives: Objectives to minimise and to choose the winner by.
        method: Search method, fitted to the budget.
        starts: Candidates that the search starts from.
        compared: Other candidates for the held-out objective.
        run: Seeds, budget and records of the run.
        total: Estimated token-evaluations of one seed.
        record: Other data of the search, for ``run.json``.
    """

    space: Space
    objectives: SearchObjectives
    method: Method
    starts: Sequence[Scaling]
    compared: Sequence[Scaling]
    run: SearchRun
    total: int
    record: Mapping[str, Any] = field(default_factory=dict)

    def find(self, folder: Path, on_progress: OnProgress | None = None) -> SearchResult:
        """Run the search in a folder; see `longrope.search.find.find_factors`."""
        return find_factors(
            self.space,
            self.objectives,
            folder,
            method=self.method,
            starts=self.starts,
            compared=self.compared,
            run=self.run,
            on_progress=on_progress,
        )

    def save(self, folder: Path, result: SearchResult, device: str = "cpu") -> dict[str, Any]:
        """Write ``run.json`` into the folder of the run, and return its values without the provenance."""
        record = {**self.record, "winner": result.extension.long.scheme, "factors": list(result.extension.long.factors)}
        record |= result.extension.long.provenance
        if isinstance(self.objectives.held_out, KeepShort):
            record["keep_short"] = kept_short(folder, self.objectives, result.extension.long)
        record["stopped"] = [outcome.stopped for outcome in result.outcomes]
        write_json(folder / "run.json", record | {"provenance": provenance(device)})
        return record


def prepare_search(
    backend: EvaluationBackend,
    length: int,
    *,
    data: Source,
    method: Method,
    options: SearchOptions,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    output: Path | None = None,
) -> PreparedSearch:
    """Return the search of a model that is ready to run.

    Args:
        backend: The model, in this process or on workers.
        length: Target length in tokens.
        data: Documents, as for `load_documents`.
        method: Search method.
        options: Other settings.
        settings: Name of the model and other settings that decide the losses, for the journals.
        facts: Other facts to keep with the factors, such as the command.
        output: Folder of the run, which the options may resume.

    Raises:
        LongRopeError: If too few documents are long enough, or hold tokens that the model has no embedding for, the
            search to resume has frozen contexts that do not fit into memory now, or the method needs gradients that the
            model's quantised weights do not let through.
    """
    method = usable_method(method, backend.gradient_barrier, options, length)
    documents = split_documents(load_documents(data, text_key=options.text_key), seed=options.data_seed)
    specs = {"search": options.text_spec(length), "held_out": options.text_spec(length, held_out=True)}
    cache = None if options.cache is None else Path(options.cache)
    make_texts = partial(search_texts, tokenizer=backend.tokenizer, cache=cache)
    drawn = {split: make_texts(documents[split], spec=specs[split]) for split in specs}
    samples = {split: texts for split, (texts, _) in drawn.items()}
    names = {split: documents for split, (_, documents) in drawn.items()}
    short: dict[str, list[WeightedText]] = {}
    settings, record = {**settings, "dtype": backend.dtype}, {"length": length, "data": source_name(data)}
    if options.keep_short is not None:
        settings["keep_short"] = options.keep_short
        for split, texts in samples.items():
            count = specs[split].count
            short[split] = short_texts(documents[split], backend.tokenizer, backend.rope, length, count)
            samples[split] = texts + short[split]
    tokens = (sample.tokens for sample in [*samples["search"], *samples["held_out"]])
    check_vocabulary(tokens, backend.vocabulary, backend.tokenizer)
    resumed = output if options.existing == "resume" else None
    objectives = objectives_as_before(backend.make_objective, samples, resumed)
    if options.keep_short is not None:
        objectives = replace(
            objectives,
            search=KeepShort.of(objectives.search, backend.rope, len(short["search"]), options.keep_short),
            held_out=KeepShort.of(objectives.held_out, backend.rope, len(short["held_out"]), options.keep_short),
        )
    prepared = prepare_objectives(
        make_space(backend.rope, length, method, options),
        objectives,
        method,
        options,
        settings=settings,
        facts={**(facts or {}), "data": source_name(data), "data_seed": options.data_seed},
    )
    return replace(prepared, record=record | {"data_seed": options.data_seed, "documents": names})


def prepare_function(
    function: Function | FunctionObjective,
    rope: Rope | None,
    length: int,
    method: str | Method | None,
    options: SearchOptions,
) -> PreparedSearch:
    """Return the search of a function; its winner is chosen by the same function, which is called once a candidate."""
    if rope is None:
        raise LongRopeError("rope = None: a function needs the geometry of its model. Give rope=Rope.of(model).")
    rope = Rope.of(rope)
    if options.keep_short is not None:
        raise LongRopeError(f"keep_short = {options.keep_short:g}: a function has no short texts. Leave it out.")
    function_objective = function if isinstance(function, FunctionObjective) else FunctionObjective(function)
    chosen = options.method(method or ("cma" if function_objective.gradient is None else "auto"), length)
    if function_objective.gradient is None and chosen.uses_gradient:
        raise no_gradient(gradient_free())
    objective: Objective = replace(function_objective, loss=cache(function_objective.loss))
    name = getattr(function_objective.loss, "__qualname__", type(function_objective.loss).__name__)
    objectives = SearchObjectives(objective, objective, {"search": name, "held_out": name})
    space = make_space(rope, length, chosen, options)
    prepared = prepare_objectives(space, objectives, chosen, options, settings={"objective": name})
    return replace(prepared, record={"length": length, "objective": name})


def prepare_objectives(
    space: Space,
    objectives: SearchObjectives,
    method: Method,
    options: SearchOptions,
    *,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
    starts: Sequence[Scaling] | None = None,
    compared: Sequence[Scaling] | None = None,
) -> PreparedSearch:
    """Return the search of objectives that is ready to run.

    Args:
        space: Space to search.
        objectives: Objectives to minimise and to choose the winner by.
        method: Search method, with its population.
        options: Other settings.
        settings: Names and settings that decide the losses, for the journals.
        facts: Other facts to keep with the factors.
        starts: Candidates that the search starts from; None for the schemes and factors of the options.
        compared: Other candidates for the held-out objective; None for the schemes `COMPARED`.
    """
    limits = options.limits
    budget = limits.tokens if options.population is None else None
    tokens = objectives.search.tokens
    context_cost = sum(context_tokens(objectives.search)) / sum(tokens) if method.uses_contexts else 0.0
    if context_cost and (options.batch_size > 1 or options.racing):
        log.warning("Note: batch and racing have no effect, as the search runs in frozen contexts: one pair at a time.")
    starts = make_starts(space, method, options) if starts is None else starts
    compared = make_schemes(COMPARED, space, options) if compared is None else compared
    fitted, total = fit_to_budget(method, tokens, budget, context_cost, starts=len(starts))
    run = SearchRun(
        seeds=range(options.seeds),
        budget=limits,
        batch_size=1 if context_cost else options.batch_size,
        racing=options.racing,
        existing=options.existing,
        settings=settings,
        provenance=facts or {},
    )
    return PreparedSearch(
        space=space,
        objectives=objectives,
        method=fitted,
        starts=starts,
        compared=compared,
        run=run,
        total=total,
    )


def check_starts(rope: Rope, length: int, method: Method, options: SearchOptions) -> None:
    """Refuse a space or starts that cannot be searched, before a model is loaded.

    Args:
        rope: Geometry of the model.
        length: Target length in tokens.
        method: Search method.
        options: Other settings.

    Raises:
        LongRopeError: If the length, the attention factor or the parametrization does not suit the rope, or a start
            cannot be read or belongs to another rope.
    """
    space = make_space(rope, length, method, options)
    for start in make_starts(space, method, options):
        space.clip(start)


def usable_method(method: Method, barrier: str | None, options: SearchOptions, length: int) -> Method:
    """Return a method that a model can be searched with, after a line in the log where it is not the given one.

    Raises:
        LongRopeError: The method needs gradients, and nothing takes its place.
    """
    if barrier is None or not method.uses_gradient:
        return method
    if method.without_gradient is None:
        raise no_gradient(gradient_free(), barrier)
    log.warning("Note: %s, so the search uses the method %s.", barrier, method.without_gradient)
    return options.method(method.without_gradient, length)
