"""Tasks that hide lines in a long text and ask for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.tasks.haystack import REPEATED, Haystack, essays, plant
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.ruler_data import essays_of

REDRAWS = 100  # drafts of one trial, until its keys are new to the document


@dataclass(frozen=True)
class NeedleDraft:
    """The strings of one trial of a needle task.

    Args:
        intro: Text before the haystack.
        lines: Lines to plant in the haystack.
        depths: Depth of each line, from 0 to 1.
        question: Text after the haystack, the end of the user's message.
        answers: All strings that the model should generate.
        wrong: Wrong answers of the same form, for a forced choice.
        keys: All names that the lines give something to; () where the question does not name one. Trials share a
            document only if they have keys, no key in common, and the same text before the haystack.
        prefix: Beginning of the answer, which the model continues.
        example: Worked example before the introduction. Trials that share a document have the first one's.
    """

    intro: str
    lines: tuple[str, ...]
    depths: tuple[float, ...]
    question: str
    answers: tuple[str, ...]
    wrong: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    prefix: str = ""
    example: str = ""


@dataclass(frozen=True)
class Encoded:
    """A draft in tokens: the example and the introduction, the planted lines, and the text after the haystack."""

    draft: NeedleDraft
    depth: float
    intro: np.ndarray
    lines: list[np.ndarray]
    ending: np.ndarray


@dataclass(frozen=True)
class NeedleTask:
    """A task that plants lines in a haystack.

    Args:
        draft: Function of a random generator and the depth of the first line that returns the strings of a trial.
        room: Tokens to reserve for the generated answer.
        haystack: Text that hides the lines: a function of `longrope.tasks.haystack`.
    """

    draft: Callable[[np.random.Generator, float], NeedleDraft]
    room: int
    haystack: Haystack = REPEATED

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, of exactly the requested length unless the haystack is never cut.

        Prompts of one document differ in the question only. A question that is shorter than the longest leaves the
        prompt shorter.
        """
        rngs = request.generators()
        documents = [self._drafts(request, trials, rngs) for trials in request.documents]
        request.check_length(self.room + max(map(_least_size, documents)))
        own_haystack = self.haystack is essays and essays_of(request.ruler_data) is None
        prompts: list[Prompt] = []
        for number, trials in enumerate(documents):
            context = self._context(request, number, trials, rngs[request.documents[number][0]])
            prompts += [
                Prompt(
                    np.concatenate([context, trial.ending]),
                    trial.draft.answers,
                    trial.draft.wrong,
                    trial.depth if len(trial.draft.answers) == 1 else None,
                    self.room,
                    len(context) if request.questions > 1 else 0,
                    chat=request.template is not None,
                    own_haystack=own_haystack,
                    drawn=not request.depths,
                )
                for trial in trials
            ]
        return prompts[: request.trials]

    def _drafts(self, request: PromptRequest, trials: range, rngs: Sequence[np.random.Generator]) -> list[Encoded]:
        """Return the drafts of the trials of one document; no two drafts have a key in common."""
        drafts: list[Encoded] = []
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
            intro, *lines = encode_within(request.tokenizer, [draft.example + draft.intro, *draft.lines])
            drafts.append(Encoded(draft, depth, intro, lines, request.ending(draft.question, draft.prefix)))
        introductions = {encoded.draft.intro for encoded in drafts}
        if request.questions > 1 and not (len(introductions) == 1 and all(encoded.draft.keys for encoded in drafts)):
            raise request.not_shareable()
        return drafts

    def _context(
        self, request: PromptRequest, number: int, trials: Sequence[Encoded], rng: np.random.Generator
    ) -> np.ndarray:
        """Return the tokens before the question: the introduction and the haystack with the lines of all trials."""
        size = request.length - self.room - len(request.opening) - _least_size(trials)
        keys = [key for trial in trials for key in trial.draft.keys]
        haystack, borders = self.haystack(request, number, size, rng, keys)
        lines = [line for trial in trials for line in trial.lines]
        depths = [depth for trial in trials for depth in trial.draft.depths]
        return np.concatenate([request.opening, trials[0].intro, plant(haystack, borders, lines, depths)])


def _least_size(trials: Sequence[Encoded]) -> int:
    """Return the tokens of a document with its longest question and an empty haystack."""
    lines = sum(len(line) for trial in trials for line in trial.lines)
    return len(trials[0].intro) + lines + max(len(trial.ending) for trial in trials)
