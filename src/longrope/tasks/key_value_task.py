"""The task that the reference model ``tiny`` was trained on: recall the words of a `key = word word` line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from longrope.data.key_value_lines import KeyValueText, make_key_value_text, plant_key_value_lines
from longrope.data.wordings import WORDS
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.words import CHOICES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class KeyValueTask:
    """A task that plants a `key = word word` line in a real document and repeats it up to the words.

    It continues a text, so its prompts are plain for chat models too.
    """

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, all drawn from one generator."""
        rng = np.random.default_rng(request.seed)
        if request.questions == 1:
            return [_only_question(request, rng, trial) for trial in range(request.trials)]
        documents = enumerate(request.documents)
        prompts = [prompt for number, trials in documents for prompt in _questions(request, rng, number, trials)]
        return prompts[: request.trials]


def _only_question(request: PromptRequest, rng: np.random.Generator, trial: int) -> Prompt:
    """Return the prompt of a document with one line."""
    depth, size = request.depth(trial), request.length - len(request.start)
    text = make_key_value_text(request.text(trial), request.tokenizer, rng=rng, length=size, depth=depth)
    answer, wrong = _options(request.tokenizer, rng, text)
    end = int(np.flatnonzero(text.answers)[0])
    return Prompt(np.concatenate([request.start, text.tokens[:end]]), (answer,), wrong, depth, size - end)


def _questions(request: PromptRequest, rng: np.random.Generator, number: int, trials: range) -> list[Prompt]:
    """Return the prompts of a document with a line for each of its trials."""
    requested, size = [request.depth(trial) for trial in trials], request.length - len(request.start)
    depths = [rng.random() if depth is None else depth for depth in requested]
    text, lines = plant_key_value_lines(request.text(number), request.tokenizer, rng=rng, length=size, depths=depths)
    context = np.concatenate([request.start, text.tokens])
    prompts = []
    for line, depth in zip(lines, requested, strict=True):
        answer, wrong = _options(request.tokenizer, rng, line)
        tokens = np.concatenate([context, line.tokens[: np.flatnonzero(line.answers)[0]]])
        prompts.append(Prompt(tokens, (answer,), wrong, depth, request.length - len(tokens), len(context)))
    return prompts


def _options(
    tokenizer: PreTrainedTokenizerBase, rng: np.random.Generator, text: KeyValueText
) -> tuple[str, tuple[str, ...]]:
    """Return the words of the repeated line, and wrong ones."""
    answer = str(tokenizer.decode(text.tokens[text.answers])).strip()
    pairs = [" ".join(pair) for pair in rng.spawn(1)[0].choice(WORDS.split(), size=(CHOICES, 2))]
    wrong = [pair for pair in dict.fromkeys(pairs) if pair != answer][: CHOICES - 1]
    return answer, tuple(wrong)
