"""Tasks that hide lines in a long text and ask for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from longrope.tasks.haystack import encode_within, noise, plant
from longrope.tasks.prompts import Prompt, PromptRequest


@dataclass(frozen=True)
class NeedleDraft:
    """The strings of one trial of a needle task.

    Args:
        intro: Text before the haystack.
        lines: Lines to plant in the haystack.
        depths: Depth of each line, from 0 to 1.
        question: Text after the haystack, which the answer follows.
        answers: All strings that the model should generate.
        wrong: Wrong answers of the same form, for a forced choice.
    """

    intro: str
    lines: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True)
class NeedleTask:
    """A task that plants lines in a real document or in noise, the haystack.

    Args:
        draft: Function of a random generator and the depth of the first line that returns the strings of a trial.
        room: Tokens to reserve for the generated answer.
        needs_texts: Whether the haystack is a real document; else it is repeated sentences.
    """

    draft: Callable[[np.random.Generator, float], NeedleDraft]
    room: int
    needs_texts: bool = False

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, of exactly the requested length."""
        depths: list[float] = []
        drafts: list[NeedleDraft] = []
        for trial, rng in enumerate(request.generators()):
            random, requested = float(rng.random()), request.depth(trial)
            depths.append(random if requested is None else float(requested))
            drafts.append(self.draft(rng, depths[-1]))
        encoded = [encode_within(request.tokenizer, [draft.intro, draft.question, *draft.lines]) for draft in drafts]
        request.check_length(self.room + max(sum(map(len, strings)) for strings in encoded))
        prompts = []
        for trial, (draft, depth, strings) in enumerate(zip(drafts, depths, encoded, strict=True)):
            tokens = self._tokens(request, trial, draft, strings)
            single = len(draft.answers) == 1
            prompts.append(Prompt(tokens, draft.answers, draft.wrong, depth if single else None, self.room))
        return prompts

    def _tokens(self, request: PromptRequest, trial: int, draft: NeedleDraft, encoded: list[np.ndarray]) -> np.ndarray:
        intro, question, *lines = encoded
        size = request.length - self.room - len(request.start) - sum(map(len, encoded))
        if self.needs_texts:
            haystack, borders = request.text(trial)[:size], None
        else:
            haystack, borders = noise(request.tokenizer, size)
        return np.concatenate([request.start, intro, plant(haystack, borders, lines, draft.depths), question])
