"""Compare rows on everything that is wanted, and put it all into one record: ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from longrope.evaluation import aggregate, measurements
from longrope.evaluation.measurements import Corpus, Measurement
from longrope.evaluation.runner import Candidate, Open, SampleStore, Tell, fill
from longrope.rope import Rope
from longrope.tasks.prompts import Prompt

VERSION = 1
WINDOW = 4096  # tokens of a short context, as in LongPPL; L0 where that is less


@dataclass(frozen=True)
class EvalSpec:
    """What is measured of every row.

    Args:
        lengths: in tokens.
        stride: of perplexity in windows that overlap, over texts of the longest length; None: not measured.
        key_tokens: the row that chooses key tokens (LongPPL); None: not measured.
        retrieval: probes by task and length.
        batch: documents in one forward pass.
    """

    lengths: Sequence[int]
    stride: int | None = None
    key_tokens: str | None = None
    retrieval: Mapping[tuple[str, int], Sequence[Prompt]] = field(default_factory=dict)
    batch: int = 1


def evaluate(
    rows: Mapping[str, Candidate],
    corpora: Sequence[Corpus],
    wanted: EvalSpec,
    *,
    rope: Rope,
    open_model: Open,
    cells: SampleStore | None = None,
    more: Sequence[Measurement] = (),
    tell: Tell = lambda *_: None,
) -> dict[str, Any]:
    """Measure all rows, and sum up.

    Args:
        rows: by name; ``original`` and ``yarn`` are what the others are compared with.
        corpora: test documents.
        wanted: what is measured.
        rope: of the model before it was extended.
        open_model: a model and its tokenizer by name.
        cells: what is measured already; gets the rest.
        more: parts whose values go into the record as they are, under ``tasks``.
        tell: hears of the progress.

    Returns:
        JSON values: everything of ``results.json`` but where it comes from (docs/evaluation.md).
    """
    cells, batch, longest = cells or SampleStore(), wanted.batch, max(wanted.lengths)
    chosen: dict[str, Any] = {}
    if wanted.key_tokens is not None:
        row = rows[wanted.key_tokens]
        for corpus in corpora:
            part = measurements.keys(corpus, min(WINDOW, rope.original_length, longest - 1), batch=batch)
            fill(cells, {wanted.key_tokens: row}, [part], open_model, tell)
            chosen[corpus.name] = dict(enumerate(cells.of(row, part)))
    texts = {
        one.name: measurements.texts(one, wanted.lengths, batch=batch, keys=chosen.get(one.name)) for one in corpora
    }
    slides = {
        (one.name, length, stride): measurements.sliding(one, length, stride, batch=batch)
        for one in corpora
        for length in wanted.lengths
        if wanted.stride is not None
        for stride in [min(wanted.stride, length - 1)]
    }
    tasks = {
        (task, length): measurements.retrieval(task, length, probes, batch=batch)
        for (task, length), probes in wanted.retrieval.items()
    }
    fill(cells, rows, [*texts.values(), *slides.values(), *tasks.values(), *more], open_model, tell)

    def each(found: Callable[[Candidate], Any]) -> dict[str, Any]:
        return {name: found(row) for name, row in rows.items()}

    perplexity = each(lambda row: aggregate.perplexities(cells, row, texts))
    record: dict[str, Any] = {
        "version": VERSION,
        "rope": {"dim": rope.dim, "base": rope.base, "original_length": rope.original_length},
        "lengths": list(wanted.lengths),
        "corpora": {one.name: {"documents": list(one.documents), "hash": one.hash} for one in corpora},
        "rows": {name: row.as_record() for name, row in rows.items()},
        "perplexity": perplexity,
        "differences": aggregate.differences(perplexity),
        "positions": each(lambda row: aggregate.positions(cells, row, texts, longest)),
        "short_context": aggregate.short_context(perplexity, rope.original_length),
    }
    if slides:
        record["sliding"] = each(lambda row: aggregate.sliding(cells, row, slides))
    if chosen:
        by = wanted.key_tokens
        record["key_tokens"] = each(lambda row: aggregate.key_tokens(cells, row, texts, chosen, longest, by))
    if tasks:
        record["retrieval"] = each(lambda row: aggregate.retrieval(cells, row, tasks))
    if more:
        record["tasks"] = each(lambda row: {k: v for part in more for k, v in cells.of(row, part)[0].items()})
    return record
