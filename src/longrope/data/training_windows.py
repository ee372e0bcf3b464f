"""Training sequences of exact length: cut from documents, packed, with the borders between documents kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.key_value_lines import make_key_value_text
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # transformers' label of a token that is not predicted
SPAN, ROOM, MOST = 128, 64, 8  # planted lines: the shortest span they are asked for in, tokens for each, most in a span
Piece = tuple[int, int, int]  # document, first token, end


@dataclass(frozen=True, eq=False)
class Windows:
    """Training sequences; each is a function of the seed and its number alone, so a run can go on anywhere.

    Whole windows are cut out of the documents as far as they go, from a random offset; what is left is packed. The
    first token of a document is not predicted from the one before; the others may look back to it, but not in short
    rows.

    Args:
        documents: token ids, each ``(tokens,)``, with an end-of-text token if the model has one.
        length: L of the stage in tokens.
        count: sequences wanted.
        original_length: L0, of the rows that short sequences are cut into.
        window: tokens of a sequence, below ``length`` if positions are skipped (PoSE, arXiv 2309.10400); as long as
            ``length`` if None.
        short: share of the sequences that are cut into rows of at most L0 tokens, where documents do not see each other
            (LongRoPE2 section 3.3).
        needles: share of the sequences, or short rows, in which lines are planted and asked for.
        tokenizer: of the planted lines.
        repeats: how often a document may be seen.
        seed: of everything.

    Raises:
        LongRopeError: if the window is longer than the length, the documents have too few tokens, or needles are
            wanted and there is no tokenizer.
    """

    documents: Sequence[np.ndarray]
    length: int
    count: int
    original_length: int
    window: int | None = None
    short: float = 0.0
    needles: float = 0.0
    tokenizer: PreTrainedTokenizerBase | None = None
    repeats: int = 1
    seed: int = 0
    windows: Sequence[Sequence[Piece]] = field(init=False)

    def __post_init__(self) -> None:
        if self.size > self.length:
            raise LongRopeError(f"window = {self.window} is above length = {self.length}; take a shorter one, or None")
        if self.needles and self.tokenizer is None:
            raise LongRopeError(f"needles = {self.needles} needs a tokenizer")
        found, number = [], 0
        while len(found) < self.count and number < self.repeats:
            found += self._cut(number)
            number += 1
        if len(found) < self.count:
            raise LongRopeError(
                f"data: {self.count:,} sequences of {self.size:,} tokens are to be trained on, but the training "
                f"documents give {len(found):,} in {self.repeats} pass(es); give more documents (data.train), "
                "fewer finetune.tokens, or a larger data.repeats"
            )
        object.__setattr__(self, "windows", found[: self.count])

    @property
    def size(self) -> int:
        """Tokens of one sequence."""
        return self.window or self.length

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """``input_ids``, ``labels`` and ``position_ids``, each int64 ``(rows, tokens)``, as a model's forward has them.

        Positions that skip come with an ``attention_mask`` of ones: without one, transformers takes a gap for the
        border of a document, as it should where documents do not see each other.
        """
        pieces = self.windows[index]
        parts = [self.documents[document][first:end] for document, first, end in pieces]
        tokens = np.concatenate(parts).astype(np.int64)
        starts = np.cumsum([0, *(end - first for _, first, end in pieces)])[:-1]
        rng = np.random.default_rng([self.seed, index])
        if math.floor((index + 1) * self.short) > math.floor(index * self.short):
            return self._short_rows(tokens, starts, rng)
        if rng.random() < self.needles:
            tokens = np.concatenate([self._planted(piece, rng) for piece in np.split(tokens, starts[1:])])
        item = _item(tokens[None], starts, self._positions(rng)[None])
        return item if self.window is None else item | {"attention_mask": np.ones_like(item["input_ids"])}

    def _planted(self, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A piece with lines planted and asked for in spans of all lengths, so that all distances occur."""
        assert self.tokenizer is not None
        done, rest = [], tokens
        while len(rest) >= SPAN:
            span = min(len(rest), round(math.exp(rng.uniform(math.log(SPAN), math.log(2 * len(tokens))))))
            count = int(rng.integers(1, max(1, min(MOST, span // ROOM)), endpoint=True))
            at = rng.uniform(0.4, 1.0)
            recall = make_key_value_text(
                rest, self.tokenizer, rng=rng, length=span, needles=count, queries=count, query_depth=at
            )
            done.append(recall.tokens)
            rest = rest[span:]
        return np.concatenate([*done, rest])

    def _cut(self, number: int) -> list[list[Piece]]:
        """One pass over the documents."""
        rng, whole, rest = np.random.default_rng([self.seed, 2**32 - 1, number]), [], []
        for document, tokens in enumerate(self.documents):
            count, left = divmod(len(tokens), self.size)
            offset = int(rng.integers(left, endpoint=True)) if count else 0
            whole += [[(document, offset + i * self.size, offset + (i + 1) * self.size)] for i in range(count)]
            ends = ((0, offset), (offset + count * self.size, len(tokens)))
            rest += [(document, first, end) for first, end in ends if end > first]
        packed = _pack([rest[i] for i in rng.permutation(len(rest))], self.size)
        found = whole + packed
        return [found[i] for i in rng.permutation(len(found))]

    def _positions(self, rng: np.random.Generator) -> np.ndarray:
        """0, 1, 2 …, with one jump at a random place so that the window reaches up to anywhere within the length."""
        positions = np.arange(self.size)
        if self.window is not None:
            cut = int(rng.integers(1, self.size))
            positions[cut:] += int(rng.integers(self.length - self.size, endpoint=True))
        return positions

    def _short_rows(self, tokens: np.ndarray, starts: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        size = self.size // math.ceil(self.size / self.original_length)
        kept = tokens[: len(tokens) // size * size]
        begins = np.union1d(starts[starts < len(kept)], np.arange(0, len(kept), size))
        pieces = np.split(kept, begins[1:])
        positions = np.concatenate([np.arange(len(piece)) for piece in pieces])
        planted = [self._planted(piece, rng) if rng.random() < self.needles else piece for piece in pieces]
        return _item(np.concatenate(planted).reshape(-1, size), begins, positions.reshape(-1, size))


def _item(tokens: np.ndarray, starts: np.ndarray, positions: np.ndarray) -> dict[str, np.ndarray]:
    labels = tokens.copy()
    labels.flat[starts] = IGNORED
    return {"input_ids": tokens, "labels": labels, "position_ids": positions}


def _pack(pieces: list[Piece], size: int) -> list[list[Piece]]:
    """Windows of pieces one after the other; the last one, if it is not full, is dropped."""
    windows: list[list[Piece]] = []
    current: list[Piece] = []
    room = size
    for document, first, end in pieces:
        while end > first:
            taken = min(room, end - first)
            current.append((document, first, first + taken))
            first, room = first + taken, room - taken
            if not room:
                windows.append(current)
                current, room = [], size
    return windows
