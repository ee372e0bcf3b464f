"""The task that the reference model ``tiny`` was trained on: recall the words of a `key = word word` line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from longrope.data.key_value_lines import WORDS, make_key_value_text
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.ruler import CHOICES


@dataclass(frozen=True)
class KeyValueTask:
    """A task that plants a `key = word word` line in a real document and repeats it up to the words."""

    needs_texts: bool = True

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, all drawn from one generator."""
        rng = np.random.default_rng(request.seed)
        size = request.length - len(request.start)
        prompts = []
        for trial in range(request.trials):
            depth = request.depth(trial)
            text = make_key_value_text(request.text(trial), request.tokenizer, rng=rng, length=size, depth=depth)
            answer = str(request.tokenizer.decode(text.tokens[text.answers])).strip()
            pairs = [" ".join(pair) for pair in rng.spawn(1)[0].choice(WORDS.split(), size=(CHOICES, 2))]
            wrong = [pair for pair in dict.fromkeys(pairs) if pair != answer][: CHOICES - 1]
            end = int(np.flatnonzero(text.answers)[0])
            tokens = np.concatenate([request.start, text.tokens[:end]])
            prompts.append(Prompt(tokens, (answer,), tuple(wrong), depth, size - end))
        return prompts
