"""Sparse training windows: chunks of one text at their own positions, with the text between them left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longrope.data.key_value_lines import KeyValueText, Line

MOST_CHUNKS = 8
SHORTEST_CHUNK = 48  # tokens
SHORTEST_GAP = 64  # tokens, of all gaps together where their length is drawn log-uniformly
NOT_PREDICTED = 8  # tokens after a gap, whose near context is missing
REACH = 1.15  # of the length of the stage: the last positions are trained with later ones beyond them
WITHOUT_GAPS, AT_FULL_REACH = 0.1, 1 / 3  # shares of the windows; the others reach anything between


@dataclass(frozen=True)
class SparseWindow:
    """Chunks of one text, one after the other; all arrays are ``(size,)``.

    Args:
        tokens: Token ids.
        positions: Position of each token in the text, from 0.
        predicted: Mask of the tokens that are predicted.
        answers: Mask of the answers of planted lines.
        chunk_ids: Number of the chunk of each token.
        key_bias: Log of the number of tokens that a key stands for: itself and its share of the gap after its chunk.
            It is 0 for planted lines, which stand for themselves.
    """

    tokens: np.ndarray
    positions: np.ndarray
    predicted: np.ndarray
    answers: np.ndarray
    chunk_ids: np.ndarray
    key_bias: np.ndarray


def draw_sparse_window(
    text: np.ndarray,
    starts: np.ndarray,
    lines: Sequence[Line],
    *,
    size: int,
    length: int,
    rng: np.random.Generator,
) -> SparseWindow:
    """Draw a window of chunks from a text, with planted lines that are asked for later, often in another chunk.

    A query in a chunk sees every token before it there, and of earlier chunks a sample. ``key_bias`` weighs that sample
    as an importance weight does, so that attention trains on few keys as it will be used over the whole length.

    Args:
        text: Token ids, ``(tokens,)``, of at least ``size`` tokens.
        starts: Sorted offsets at which a document starts in the text; these tokens are not predicted.
        lines: Lines to plant, each of which is asked for once.
        size: Tokens of the window.
        length: Length L of the stage in tokens; the window reaches up to `REACH` times as far.
        rng: Generator of all random choices.
    """
    room = size - sum(line.size for line in lines)
    sizes = _chunk_sizes(room, rng)
    gaps = _gaps(len(sizes), min(round(REACH * length), len(text)) - size, rng)
    begins = np.cumsum([0, *(sizes[:-1] + gaps)])
    begins += int(rng.integers(len(text) - begins[-1] - sizes[-1], endpoint=True))
    offsets = np.concatenate([np.arange(begin, begin + count) for begin, count in zip(begins, sizes, strict=True)])
    chunk_ids = np.repeat(np.arange(len(sizes)), sizes)
    predicted = ~np.isin(offsets, starts)
    for first, gap in zip(np.cumsum(sizes)[:-1], gaps, strict=True):
        predicted[first : first + NOT_PREDICTED] &= gap == 0
    key_bias = np.log1p(np.append(gaps, 0) / sizes)[chunk_ids]
    inserted, cuts = _places(lines, room, rng)
    at = np.repeat(cuts, [line.tokens.size for line in inserted])

    def insert(background: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
        return np.insert(background, at, np.concatenate([*values, background[:0]]))

    ids = np.insert(chunk_ids, at, chunk_ids[at - 1])
    return SparseWindow(
        tokens=insert(text[offsets].astype(np.int64), [line.tokens for line in inserted]),
        positions=np.arange(size) + np.cumsum([0, *gaps])[ids],
        predicted=np.insert(predicted, at, True),
        answers=insert(np.zeros(room, dtype=bool), [line.answers for line in inserted]),
        chunk_ids=ids,
        key_bias=np.insert(key_bias, at, 0.0).astype(np.float32),
    )


def _chunk_sizes(room: int, rng: np.random.Generator) -> np.ndarray:
    """Return the tokens of each chunk, in all ``room``."""
    most = min(MOST_CHUNKS, room // SHORTEST_CHUNK)
    count = int(rng.integers(2, most, endpoint=True)) if most >= 2 else 1
    free = room - count * min(SHORTEST_CHUNK, room)
    cuts = np.sort(rng.integers(0, free, size=count - 1, endpoint=True))
    return np.diff([0, *cuts, free]) + min(SHORTEST_CHUNK, room)


def _gaps(chunks: int, longest: int, rng: np.random.Generator) -> np.ndarray:
    """Return the tokens left out between the chunks, ``(chunks - 1,)``, at most ``longest`` in all."""
    kind = rng.random()
    if kind < WITHOUT_GAPS or chunks == 1 or longest <= 0:
        return np.zeros(chunks - 1, dtype=np.int64)
    total = longest
    if kind > WITHOUT_GAPS + AT_FULL_REACH:
        least = min(SHORTEST_GAP, longest)
        log_uniform = rng.random() < 0.5
        drawn = np.exp(rng.uniform(np.log(least), np.log(longest))) if log_uniform else rng.integers(longest)
        total = round(float(drawn))
    cuts = np.sort(rng.integers(0, total, size=chunks - 2, endpoint=True))
    return np.diff([0, *cuts, total])


def _places(lines: Sequence[Line], room: int, rng: np.random.Generator) -> tuple[list[KeyValueText], np.ndarray]:
    """Return the lines and their questions in order of their places, and the places: offsets in the background."""
    first = rng.integers(1, room, size=len(lines))
    again = first + np.ceil(rng.random(len(lines)) * (room - first)).astype(np.int64)
    cuts = np.concatenate([first, again]).astype(np.int64)
    order = np.argsort(cuts, kind="stable")
    texts = [*(line.planted for line in lines), *(line.question for line in lines)]
    return [texts[i] for i in order], cuts[order]
