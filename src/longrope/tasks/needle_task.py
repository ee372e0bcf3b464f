"""Tasks that hide lines in a long text and ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longrope.errors import LongRopeError
from longrope.tasks.haystack import encode_within, noise, plant
from longrope.tasks.prompts import Prompt, PromptRequest

REDRAWS = 100  # drafts of one trial, until its keys are new to the document


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
        keys: All names that the lines give something to; () where the question does not name one. Trials share a
            document only if they have keys, no key in common, and the same text before the haystack.
    """

    intro: str
    lines: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


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
        """Return a prompt for each trial, of exactly the requested length.

        Prompts of one document differ in the question only. A question that is shorter than the longest leaves more
        room for its answer.
        """
        rngs = request.generators()
        documents = [self._drafts(request, trials, rngs) for trials in request.documents]
        encoded = [
            [encode_within(request.tokenizer, [draft.intro, draft.question, *draft.lines]) for _, draft in drafts]
            for drafts in documents
        ]
        request.check_length(self.room + max(map(_least_size, encoded)))
        prompts = []
        for number, (drafts, strings) in enumerate(zip(documents, encoded, strict=True)):
            context = self._context(request, number, drafts, strings)
            for (depth, draft), (_, question, *_) in zip(drafts, strings, strict=True):
                tokens = np.concatenate([context, question])
                needle_depth = depth if len(draft.answers) == 1 else None
                shared = len(context) if request.questions > 1 else 0
                room = request.length - len(tokens)
                prompts.append(Prompt(tokens, draft.answers, draft.wrong, needle_depth, room, shared))
        return prompts[: request.trials]

    def _drafts(
        self, request: PromptRequest, trials: range, rngs: Sequence[np.random.Generator]
    ) -> list[tuple[float, NeedleDraft]]:
        """Return the depths and the drafts of the trials of one document; no two drafts have a key in common."""
        drafts: list[tuple[float, NeedleDraft]] = []
        used: set[str] = set()
        for trial in trials:
            random, requested = float(rngs[trial].random()), request.depth(trial)
            depth = random if requested is None else float(requested)
            redraws = (self.draft(rngs[trial], depth) for _ in range(REDRAWS))
            draft = next((draft for draft in redraws if used.isdisjoint(draft.keys)), None)
            if draft is None:
                raise LongRopeError(
                    f"questions = {request.questions}: task {request.task} has too few keys for one document. "
                    f"Ask at most {len(drafts)} questions."
                )
            used.update(draft.keys)
            drafts.append((depth, draft))
        introductions = {draft.intro for _, draft in drafts}
        if request.questions > 1 and not (len(introductions) == 1 and all(draft.keys for _, draft in drafts)):
            raise request.not_shareable()
        return drafts

    def _context(
        self,
        request: PromptRequest,
        number: int,
        drafts: list[tuple[float, NeedleDraft]],
        encoded: list[list[np.ndarray]],
    ) -> np.ndarray:
        """Return the tokens before the question: the introduction and the haystack with the lines of all drafts."""
        intro = encoded[0][0]
        size = request.length - self.room - len(request.start) - _least_size(encoded)
        if self.needs_texts:
            haystack, borders = request.text(number)[:size], None
        else:
            haystack, borders = noise(request.tokenizer, size)
        lines = [line for _, _, *own_lines in encoded for line in own_lines]
        depths = [depth for _, draft in drafts for depth in draft.depths]
        return np.concatenate([request.start, intro, plant(haystack, borders, lines, depths)])


def _least_size(encoded: list[list[np.ndarray]]) -> int:
    """Return the tokens of a document with its longest question and an empty haystack."""
    lines = sum(len(line) for _, _, *own_lines in encoded for line in own_lines)
    return len(encoded[0][0]) + lines + max(len(question) for _, question, *_ in encoded)
