"""Training windows: sequences of exact length, cut from documents and packed, with borders between documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.key_value_lines import KeyValueText, Line, make_lines, plant_lines
from longrope.data.sparse_windows import SHORTEST_CHUNK, draw_sparse_window
from longrope.data.token_sequences import as_array
from longrope.data.wordings import KEY_VALUE, Wording
from longrope.errors import LongRopeError
from longrope.units import token_count

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # transformers' label of a token that is not predicted
SHORTEST_SPAN = 128  # tokens of the shortest span with planted lines and their questions
TOKENS_PER_LINE = 64  # of a span, for each line planted in it
MOST_LINES = 8  # planted in a span
Chunk = tuple[int, int, int]  # document, first token, end


@dataclass(frozen=True, eq=False)
class TrainingWindows:
    """Training sequences, each a function of the seed and its index alone, so training can resume at any of them.

    Whole windows are cut out of the documents from a random offset, and the rest of the documents is packed. The first
    token of a document is not predicted. The other tokens may attend to the document before it, except in short rows.

    Args:
        documents: Token ids of each document, ``(tokens,)``, with an end-of-text token if the model has one.
        length: Length L of the stage in tokens, such as 32768 or ``"32k"``.
        count: Number of sequences.
        original_length: Length L0 of the rows that short sequences are cut into, in tokens.
        window: Tokens of a sequence, below ``length`` if positions jump (PoSE, arXiv 2309.10400); ``length`` if None.
        sparse: Whether a window holds chunks of the joined documents at their own positions (`draw_sparse_window`)
            instead of one text whose positions jump once.
        short: Share of the sequences that are cut into rows of at most L0 tokens, where documents do not see each other
            (LongRoPE2 section 3.3).
        skipped: Share of the short sequences whose rows are one text with one jump in its positions, up to ``length``
            (after the skipped positions of LongReD, arXiv 2502.07365).
        needles: Share of the sequences, or short rows, with planted lines and questions for them.
        wordings: Wordings of the lines and questions.
        answer_weight: Weight of the answers to the questions in the loss, beside 1 for the other tokens.
        tokenizer: Tokenizer of the planted lines.
        repeats: Largest number of passes over the documents.
        seed: Seed of all random choices.

    Raises:
        LongRopeError: If the window is longer than the length, the documents have too few tokens, or the tokenizer of
            the needles is missing.
    """

    documents: Sequence[np.ndarray]
    length: int
    count: int
    original_length: int
    window: int | None = None
    sparse: bool = False
    short: float = 0.0
    skipped: float = 0.0
    needles: float = 0.0
    wordings: Sequence[Wording] = (KEY_VALUE,)
    answer_weight: float = 1.0
    tokenizer: PreTrainedTokenizerBase | None = None
    repeats: int = 1
    seed: int = 0
    windows: Sequence[Sequence[Chunk]] = field(init=False)

    def __post_init__(self) -> None:
        for name, least in {"length": 1, "count": 0, "original_length": 1, "window": 1}.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, token_count(name, getattr(self, name), least))
        object.__setattr__(self, "documents", [as_array(document) for document in self.documents])
        for index, document in enumerate(self.documents):
            if document.ndim != 1:
                raise LongRopeError(f"documents[{index}]: not token ids. Pass the tokenizer's input_ids of each text.")
        if self.size > self.length:
            raise LongRopeError(
                f"window = {self.window}: longer than length = {self.length}. Take a shorter window, or None."
            )
        if self.sparse and self.size < 2 * SHORTEST_CHUNK:
            raise LongRopeError(
                f"window = {self.size}: sparse windows hold chunks of {SHORTEST_CHUNK} tokens or more, two at least. "
                f"Take {2 * SHORTEST_CHUNK} or more."
            )
        if self.needles and self.tokenizer is None:
            raise LongRopeError(f"needles = {self.needles}: planted lines need a tokenizer. Pass tokenizer.")
        windows: list[list[Chunk]] = []
        number = 0
        while len(windows) < self.count and number < self.repeats:
            windows += self._cut(number)
            number += 1
        if len(windows) < self.count:
            raise LongRopeError(
                f"data: {self.count:,} sequences of {self.size:,} tokens are to be trained on, but the training "
                f"documents give {len(windows):,} in {self.repeats} pass(es). Give more documents (data.train), "
                "fewer finetune.tokens, or a larger data.repeats."
            )
        object.__setattr__(self, "windows", windows[: self.count])

    @property
    def size(self) -> int:
        """Tokens of one sequence."""
        return self.window or self.length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return ``input_ids``, ``labels`` and ``position_ids`` of a model's forward, each int64 ``(rows, tokens)``.

        Positions that jump come with an ``attention_mask`` of ones. Without one, transformers takes a jump for a border
        between documents, as it should where documents do not see each other. Sparse windows come with ``chunk_ids``
        and ``key_bias`` instead (`sparse_masks`), and answers that weigh more with ``weights``, float32. Short rows
        whose positions jump have ``teacher_position_ids`` without the jump, for the original model (`Distillation`).
        """
        window = self.windows[index]
        tokens = np.concatenate([self.documents[document][first:end] for document, first, end in window])
        tokens = tokens.astype(np.int64)
        starts = np.cumsum([0, *(end - first for _, first, end in window)])[:-1]
        rng = np.random.default_rng([self.seed, index])
        if math.floor((index + 1) * self.short) > math.floor(index * self.short):
            return self._short_rows(tokens, starts, rng)
        if self.sparse:
            return self._sparse_window(rng)
        chunks = [_background(chunk) for chunk in np.split(tokens, starts[1:])]
        if rng.random() < self.needles:
            chunks = [self._plant(chunk.tokens, rng) for chunk in chunks]
        positions = np.arange(self.size) if self.window is None else self._with_jump(self.size, rng)
        inputs = self._inputs(chunks, 1, starts, positions)
        return inputs if self.window is None else inputs | {"attention_mask": np.ones_like(inputs["input_ids"])}

    def _sparse_window(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        lines: Sequence[Line] = []
        if rng.random() < self.needles:
            assert self.tokenizer is not None
            count = max(1, min(MOST_LINES, self.size // (4 * TOKENS_PER_LINE)))
            lines = _fitting(
                make_lines(self.tokenizer, rng, count, self.wordings), max(TOKENS_PER_LINE, self.size // 4)
            )
        text, starts = self._joined
        window = draw_sparse_window(text, starts, lines, size=self.size, length=self.length, rng=rng)
        inputs = {
            "input_ids": window.tokens,
            "labels": np.where(window.predicted, window.tokens, IGNORED),
            "position_ids": window.positions,
            "chunk_ids": window.chunk_ids,
            "key_bias": window.key_bias,
        }
        if self.answer_weight != 1:
            inputs["weights"] = _weights(window.predicted, window.answers, self.answer_weight)
        return {name: values[None] for name, values in inputs.items()}

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the documents joined, and the offsets at which they start."""
        return np.concatenate(self.documents), np.cumsum([0, *map(len, self.documents)])[:-1]

    def _plant(self, tokens: np.ndarray, rng: np.random.Generator) -> KeyValueText:
        """Plant lines and ask for them in spans of random lengths, so that questions occur at all distances."""
        assert self.tokenizer is not None
        spans: list[KeyValueText] = []
        rest = tokens
        while len(rest) >= SHORTEST_SPAN:
            drawn = math.exp(rng.uniform(math.log(SHORTEST_SPAN), math.log(2 * len(tokens))))
            span = min(len(rest), round(drawn))
            most = max(1, min(MOST_LINES, span // TOKENS_PER_LINE))
            count = int(rng.integers(1, most, endpoint=True))
            depth = rng.uniform(0.4, 1.0)
            lines = _fitting(make_lines(self.tokenizer, rng, count, self.wordings), span)
            text = plant_lines(rest, self.tokenizer, lines, rng=rng, length=span, queries=len(lines), query_depth=depth)
            spans.append(text)
            rest = rest[span:]
        return _joined_texts([*spans, _background(rest)])

    def _cut(self, number: int) -> list[list[Chunk]]:
        """Return the windows of one pass over the documents, in random order."""
        rng = np.random.default_rng([self.seed, 2**32 - 1, number])
        windows: list[list[Chunk]] = []
        ends: list[Chunk] = []
        for document, tokens in enumerate(self.documents):
            count, left = divmod(len(tokens), self.size)
            offset = int(rng.integers(left, endpoint=True)) if count else 0
            stop = offset + count * self.size
            windows += [[(document, first, first + self.size)] for first in range(offset, stop, self.size)]
            ends += [(document, first, end) for first, end in ((0, offset), (stop, len(tokens))) if end > first]
        windows += _pack([ends[i] for i in rng.permutation(len(ends))], self.size)
        return [windows[i] for i in rng.permutation(len(windows))]

    def _with_jump(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return 0, 1, 2 … with one jump at a random place, so that they reach anywhere within the length."""
        positions = np.arange(size)
        positions[int(rng.integers(1, size)) :] += int(rng.integers(self.length - size, endpoint=True))
        return positions

    def _short_rows(self, tokens: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        size = self.size // math.ceil(self.size / self.original_length)
        rows = len(tokens) // size
        full_rows = tokens[: rows * size]
        begins = np.union1d(starts[starts < len(full_rows)], np.arange(0, len(full_rows), size))
        chunks = np.split(full_rows, begins[1:])
        positions = np.concatenate([np.arange(len(chunk)) for chunk in chunks])
        planted = [self._plant(chunk, rng) if rng.random() < self.needles else _background(chunk) for chunk in chunks]
        if not rng.random() < self.skipped:
            return self._inputs(planted, rows, begins, positions)
        inputs = self._inputs(planted, rows, begins, np.concatenate([self._with_jump(size, rng) for _ in range(rows)]))
        plain = np.tile(np.arange(size), (rows, 1))
        return inputs | {"attention_mask": np.ones_like(plain), "teacher_position_ids": plain}

    def _inputs(
        self, texts: Sequence[KeyValueText], rows: int, starts: np.ndarray, positions: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return the inputs of texts that stand one after the other in rows; the tokens at ``starts`` have no label."""
        text = _joined_texts(texts)
        labels = text.tokens.copy()
        labels[starts] = IGNORED
        inputs = {"input_ids": text.tokens, "labels": labels, "position_ids": positions}
        if self.answer_weight != 1:
            inputs["weights"] = _weights(labels != IGNORED, text.answers, self.answer_weight)
        return {name: values.reshape(rows, -1) for name, values in inputs.items()}


def _fitting(lines: Sequence[Line], size: int) -> Sequence[Line]:
    """Return as many lines, from the first, as fit with their questions into ``size`` tokens."""
    return lines[: int((np.cumsum([line.size for line in lines]) <= size).sum())]


def _background(tokens: np.ndarray) -> KeyValueText:
    return KeyValueText(tokens, np.zeros(len(tokens), dtype=bool))


def _joined_texts(texts: Sequence[KeyValueText]) -> KeyValueText:
    return KeyValueText(*(np.concatenate([getattr(text, name) for text in texts]) for name in ("tokens", "answers")))


def _weights(predicted: np.ndarray, answers: np.ndarray, answer_weight: float) -> np.ndarray:
    """Return the weights of tokens in the loss, float32, whose mean over the predicted tokens is 1."""
    weights = np.where(answers, answer_weight, 1.0) * predicted
    return (weights * (predicted.sum() / max(weights.sum(), 1))).astype(np.float32)


def _pack(chunks: list[Chunk], size: int) -> list[list[Chunk]]:
    """Return windows of consecutive chunks; a last window that is not full is dropped."""
    windows: list[list[Chunk]] = []
    current: list[Chunk] = []
    room = size
    for document, first, end in chunks:
        while end > first:
            taken = min(room, end - first)
            current.append((document, first, first + taken))
            first, room = first + taken, room - taken
            if not room:
                windows.append(current)
                current, room = [], size
    return windows
