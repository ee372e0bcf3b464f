"""What can be measured of a model with factors, in cells that are measured one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel

from longrope.evaluation.perplexity import losses_by_length
from longrope.evaluation.sliding_window import factors_at, key_tokens, sliding_losses
from longrope.models.patch import patch
from longrope.scaling import Extension, Scaling
from longrope.tasks.prompts import Prompt
from longrope.tasks.scoring import score_prompts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BINS = 32  # of the loss by position


@dataclass(frozen=True, eq=False)
class Corpus:
    """Test documents of one source: ``tokens`` int64 ``(documents, the longest length)``."""

    name: str
    tokens: np.ndarray
    documents: tuple[str, ...]

    @property
    def hash(self) -> str:
        """A fingerprint of the tokens."""
        return _digest(np.ascontiguousarray(self.tokens).tobytes())


@dataclass(frozen=True)
class Subject:
    """What a part measures: a model, its tokenizer, and factors for it (None: the checkpoint as it is)."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    factors: Scaling | Extension | None


Values = Iterator[tuple[int, Any]]


@dataclass(frozen=True)
class Measurement:
    """One kind of measurement.

    Args:
        name: unlike that of any other part of a comparison.
        count: cells.
        tokens: that a cell passes through the model, for the progress.
        measure: the cells with these numbers, each with a JSON value.
    """

    name: str
    count: int
    tokens: int
    measure: Callable[[Subject, Sequence[int]], Values]


def edges(length: int) -> np.ndarray:
    """Borders between the positions that `texts` puts together, int64, ascending from 1 to ``length``."""
    return np.unique(np.linspace(1, length, min(BINS, length - 1) + 1).round().astype(int))


def texts(
    corpus: Corpus, lengths: Sequence[int], *, batch: int = 1, keys: Mapping[int, Sequence[int]] | None = None
) -> Measurement:
    """The loss of each document by length and by position, and of its key tokens if they are given.

    A cell has mean losses in nats: ``lengths`` by length, ``positions`` of the longest one between the `edges`, and
    ``key`` (None without key tokens).
    """
    longest = max(lengths)
    mark = "" if keys is None else f" of {_digest(repr(sorted(keys.items())).encode())}"

    def measure(subject: Subject, wanted: Sequence[int]) -> Values:
        for chosen in _batches(wanted, batch):
            found = losses_by_length(subject.model, subject.factors, corpus.tokens[chosen], lengths, batch=batch)
            for row, document in enumerate(chosen):
                whole = found[longest][row].astype(float)
                positions = np.split(whole, edges(longest)[1:-1] - 1)
                key = None if keys is None or not keys[document] else float(whole[list(keys[document])].mean())
                yield (
                    document,
                    {
                        "lengths": {str(n): float(found[n][row, : n - 1].mean(dtype=float)) for n in lengths},
                        "positions": [float(part.mean()) for part in positions],
                        "key": key,
                    },
                )

    return Measurement(f"text {corpus.name}{mark}", len(corpus.tokens), longest, measure)


def sliding(corpus: Corpus, length: int, stride: int, *, batch: int = 1) -> Measurement:
    """The mean loss of each document in windows that overlap; see `sliding_losses`."""
    whole = corpus.tokens.shape[1]

    def measure(subject: Subject, wanted: Sequence[int]) -> Values:
        for i in wanted:
            losses = sliding_losses(
                subject.model, subject.factors, corpus.tokens[i], length=length, stride=stride, batch=batch
            )
            yield i, float(losses.mean(dtype=float))

    passes = length * (1 + -(-(whole - length) // stride))
    return Measurement(f"sliding {corpus.name} {length}", len(corpus.tokens), passes, measure)


def keys(corpus: Corpus, window: int, *, batch: int = 1) -> Measurement:
    """Which losses of each document are those of key tokens; see `key_tokens`."""

    def measure(subject: Subject, wanted: Sequence[int]) -> Values:
        for i in wanted:
            yield i, key_tokens(subject.model, subject.factors, corpus.tokens[i], window=window, batch=batch)

    return Measurement(f"key tokens {corpus.name}", len(corpus.tokens), 3 * corpus.tokens.shape[1], measure)


def retrieval(task: str, length: int, probes: Sequence[Prompt], *, batch: int = 1) -> Measurement:
    """What a model makes of the probes of a task at one length, room for the answer included; a cell is a probe."""

    def measure(subject: Subject, wanted: Sequence[int]) -> Values:
        with patch(subject.model, factors_at(subject.factors, length)):
            for chosen in _batches(wanted, batch):
                found = score_prompts(subject.model, subject.tokenizer, [probes[i] for i in chosen], batch=batch)
                for i, outcome in zip(chosen, found, strict=True):
                    yield i, {"depth": probes[i].depth, "choices": 1 + len(probes[i].wrong), **asdict(outcome)}

    return Measurement(f"retrieval {task} {length}", len(probes), length, measure)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _batches(wanted: Sequence[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(wanted), size):
        yield list(wanted[start : start + size])
