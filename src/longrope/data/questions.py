"""Documents with questions at their end: planted lines, chains of lines and passages, which only the text answers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.key_value_lines import start_size
from longrope.data.tokenize import encode_within
from longrope.data.wordings import KEY_VALUE, make_keys
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VALUES = 8  # lines `key = word word`; a quarter as many passages, and half as many chains
PASSAGE, LEAD = 24, 4  # tokens of a repeated passage, and how many of them are given
TEXT, ASKED = 0, -1  # labels of tokens: of the document; of lines and questions
KINDS = ("value", "chain", "copy")  # labels 1, 2, 3: answers
ASKED_KINDS = ("value", "copy")  # with chains, a search of `tiny` loses perplexity and recall (docs/search.md)


@dataclass(frozen=True)
class _Question:
    """Lines to plant, in their order, and the tokens of the question with labels."""

    lines: tuple[list[int], ...]
    tokens: list[int]
    labels: list[int]


def ask_questions(
    document: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    rng: np.random.Generator,
    kinds: Collection[str] = ASKED_KINDS,
) -> tuple[np.ndarray, np.ndarray]:
    """Plant lines in a document and ask for them at its end, in the same number of tokens.

    - *value*: a line ``key = word word`` is repeated; its words are the answer (LongRoPE2 section 3.2).
    - *chain*: after such a line, another one ``other = key``; the question ``other = key = word word`` is answered by
      the key and its words (variable tracking).
    - *copy*: a passage of the document is repeated; all but its first tokens are the answer.

    A short document has fewer questions, of fewer kinds.

    Args:
        document: Token ids, ``(length,)``.
        tokenizer: Tokenizer of the model.
        rng: Generator of the lines and of their places.
        kinds: Kinds of questions, some of `KINDS`.

    Returns:
        Token ids and labels of the tokens, both int64 ``(length,)``. A label is `TEXT`, `ASKED`, or 1 + an index of
        `KINDS` for an answer.

    Raises:
        LongRopeError: If the document is too short for the questions.
    """
    length = len(document)
    values = max(1, min(VALUES, length // 128))
    counts = {"value": values, "chain": values // 2, "copy": values // 4}
    values, chains, copies = (counts[kind] if kind in kinds else 0 for kind in KINDS)
    questions = _key_questions(tokenizer, rng, values, chains)
    newline = _ids(tokenizer, ["\n"])[0]
    planted = [line for question in questions for line in question.lines]
    size = sum(map(len, planted)) + sum(len(question.tokens) for question in questions)
    room = length - size - copies * (len(newline) + PASSAGE)
    if room < PASSAGE:
        count = len(questions) + copies
        raise LongRopeError(
            f"{length} tokens of a document: too short for {count} question{'s' * (count > 1)}. "
            f"Use a length or window of at least {length + PASSAGE - room}, or needles = 0."
        )
    for start in rng.integers(0, room - PASSAGE, size=copies, endpoint=True):
        passage = document[start : start + PASSAGE].tolist()
        labels = [ASKED] * (len(newline) + LEAD) + [1 + KINDS.index("copy")] * (PASSAGE - LEAD)
        questions.append(_Question((), newline + passage, labels))
    places = np.concatenate([np.sort(rng.integers(0, room, len(question.lines))) for question in questions])
    places = np.maximum(places, start_size(document, tokenizer))
    order = np.argsort(places, kind="stable")
    tokens, labels = [], []
    for chunk, index in zip(np.split(document[:room], places[order]), [*order, None], strict=True):
        line = [] if index is None else planted[index]
        tokens += [*chunk.tolist(), *line]
        labels += [TEXT] * len(chunk) + [ASKED] * len(line)
    for index in rng.permutation(len(questions)):
        tokens += questions[index].tokens
        labels += questions[index].labels
    return np.array(tokens, dtype=np.int64), np.array(labels, dtype=np.int64)


def _key_questions(
    tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, values: int, chains: int
) -> list[_Question]:
    """Return questions for lines with different keys: values, then chains."""
    keys = make_keys(rng, values + 2 * chains)
    words = KEY_VALUE.draw_values(rng, values + chains)
    heads, names = (_ids(tokenizer, [form.format(key) for key in keys]) for form in (KEY_VALUE.line, " {}"))
    answers = _ids(tokenizer, words)
    equals, newline = _ids(tokenizer, [" =", "\n"])
    value, chain, questions = 1 + KINDS.index("value"), 1 + KINDS.index("chain"), []
    for i in range(values + chains):
        line = heads[i] + answers[i] + newline
        if i < values:
            labels = [ASKED] * len(heads[i]) + [value] * len(answers[i]) + [ASKED] * len(newline)
            questions.append(_Question((line,), line, labels))
            continue
        head, name = heads[i + chains], names[i]
        tokens = head + name + equals + answers[i] + newline
        labels = [ASKED] * len(head) + [chain] * len(name) + [ASKED] * len(equals)
        labels += [chain] * len(answers[i]) + [ASKED] * len(newline)
        questions.append(_Question((line, head + name + newline), tokens, labels))
    return questions


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in encode_within(tokenizer, texts)]
