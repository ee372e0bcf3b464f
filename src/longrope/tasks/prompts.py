"""How the probes of each kind of task are put together from tokens."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.key_value_lines import WORDS, make_key_value_text
from longrope.errors import LongRopeError
from longrope.tasks.haystack import encode_within, noise, plant
from longrope.tasks.ruler import CHOICES, NeedleDraft, WordListDraft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that ends in a question, and what is wanted.

    Args:
        tokens: of the prompt, int64 ``(length - room,)``.
        answers: all strings that are wanted.
        wrong: others of the same form, for a forced choice; none where several answers are wanted.
        depth: where in the text the asked needle lies, from 0 to 1; None for several, or for one that was planted
            at random.
        room: tokens kept for what the model says.
    """

    tokens: np.ndarray
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    depth: float | None
    room: int


@dataclass(frozen=True)
class PromptRequest:
    """What `make_probes` was asked for; ``start`` is what the tokenizer puts before every text."""

    task: str
    tokenizer: PreTrainedTokenizerBase
    length: int
    trials: int
    texts: np.ndarray | None
    depths: Sequence[float] | None
    seed: int
    start: np.ndarray

    def depth(self, trial: int) -> float | None:
        """The depth that a trial shall have; None for a random one."""
        return self.depths[trial % len(self.depths)] if self.depths else None

    def text(self, trial: int) -> np.ndarray:
        """The document of a trial, without what the tokenizer puts before it."""
        if self.texts is None or not len(self.texts) or self.texts.shape[1] < self.length:
            given = None if self.texts is None else self.texts.shape
            raise LongRopeError(
                f"texts = {given}: task {self.task} at length {self.length} hides its needles in real documents; "
                f"give token ids of the shape (documents, at least {self.length})"
            )
        text, size = self.texts[trial % len(self.texts)], len(self.start)
        return text[size:] if np.array_equal(text[:size], self.start) else text


def needle_prompts(
    request: PromptRequest, *, draft: Callable[[np.random.Generator, float], NeedleDraft], room: int, real: bool
) -> list[Prompt]:
    """Lines drafted for a depth, planted in a real document or in noise."""
    drafts: list[tuple[NeedleDraft, float | None]] = []
    for trial, rng in enumerate(_generators(request)):
        drawn, wanted = rng.random(), request.depth(trial)
        depth = float(drawn if wanted is None else wanted)
        made = draft(rng, depth)
        drafts.append((made, depth if len(made.answers) == 1 else None))
    pieces = [encode_within(request.tokenizer, [made.intro, made.question, *made.lines]) for made, _ in drafts]
    _check_length(request, room + max(sum(map(len, each)) for each in pieces))
    probes = []
    for trial, ((made, depth), (intro, question, *lines)) in enumerate(zip(drafts, pieces, strict=True)):
        size = request.length - room - len(request.start) - sum(map(len, (intro, question, *lines)))
        hay, borders = (request.text(trial)[:size], None) if real else noise(request.tokenizer, size)
        body = plant(hay, borders, lines, made.depths)
        tokens = np.concatenate([request.start, intro, body, question])
        probes.append(Prompt(tokens, made.answers, made.wrong, depth, room))
    return probes


def word_list_prompts(
    request: PromptRequest, *, draft: Callable[[np.random.Generator, int], WordListDraft], room: int
) -> list[Prompt]:
    """Bags of words to count, as many words as fit."""
    rngs = _generators(request)
    bags = [draft(rng, request.length) for rng in rngs]
    pieces = [encode_within(request.tokenizer, [bag.intro, bag.question, *bag.words]) for bag in bags]
    sizes = [np.array([len(word) for word in words]) for _, _, *words in pieces]
    frames = [room + len(intro) + len(question) for intro, question, *_ in pieces]
    least = [frame + int(bag.counts(bag.least) @ size) for frame, bag, size in zip(frames, bags, sizes, strict=True)]
    _check_length(request, max(least))
    probes = []
    for bag, (intro, question, *words), size, frame, rng in zip(bags, pieces, sizes, frames, rngs, strict=True):
        left = request.length - len(request.start) - frame
        most = bisect_right(range(left), left, key=lambda n, bag=bag, size=size: bag.counts(n) @ size) - 1
        counts = bag.counts(most)
        order = rng.permutation(np.repeat(np.arange(len(words)), counts))
        pad, _ = noise(request.tokenizer, left - int(counts @ size))
        tokens = np.concatenate([request.start, pad, intro, *[words[i] for i in order], question])
        probes.append(Prompt(tokens, bag.answers, (), None, room))
    return probes


def key_value_prompts(request: PromptRequest) -> list[Prompt]:
    """What ``tiny`` was trained on; one trial after the other from one generator."""
    rng, start, probes = np.random.default_rng(request.seed), request.start, []
    for trial in range(request.trials):
        depth, size = request.depth(trial), request.length - len(start)
        recall = make_key_value_text(request.text(trial), request.tokenizer, rng=rng, length=size, depth=depth)
        answer = str(request.tokenizer.decode(recall.tokens[recall.answers])).strip()
        pairs = [" ".join(pair) for pair in rng.spawn(1)[0].choice(WORDS.split(), size=(CHOICES, 2))]
        wrong = [pair for pair in dict.fromkeys(pairs) if pair != answer][: CHOICES - 1]
        asked = int(np.flatnonzero(recall.answers)[0])
        tokens = np.concatenate([start, recall.tokens[:asked]])
        probes.append(Prompt(tokens, (answer,), tuple(wrong), depth, size - asked))
    return probes


def _generators(request: PromptRequest) -> list[np.random.Generator]:
    """One for each trial, so that no trial depends on how long the one before was."""
    return np.random.default_rng(request.seed).spawn(request.trials)


def _check_length(request: PromptRequest, least: int) -> None:
    least += len(request.start)
    if request.length < least:
        raise LongRopeError(
            f"length = {request.length} is too short for task {request.task} with this tokenizer; use at least {least}"
        )
