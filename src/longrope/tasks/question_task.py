"""Questions on documents among many others: RULER's qa_1 (SQuAD) and qa_2 (HotpotQA), in RULER's words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.tasks.prompts import Prompt, PromptRequest
from longrope.tasks.ruler_data import Question, QuestionSet, questions_of

TASK = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
INTRO = f"{TASK}\n\nThe following are given documents."
RULER_SAMPLES = 500  # another seed asks other questions
BATCH = 16  # documents to encode together


@dataclass(frozen=True)
class QuestionTask:
    """A task that hides the documents of a question among others, first those of its article.

    Args:
        data: Name of the questions, a key of `longrope.tasks.ruler_data.FILES`.
        room: Tokens to reserve for the generated answer.
    """

    data: str
    room: int = 32

    def prompts(self, request: PromptRequest) -> list[Prompt]:
        """Return a prompt for each trial, of the requested length. The last document that is drawn is cut.

        Questions are asked in the order of the data. Those whose documents do not fit are left out.
        """
        if request.questions > 1:
            raise request.not_shareable()
        data = questions_of(request.ruler_data, self.data)
        (intro,) = encode_within(request.tokenizer, [INTRO])
        prompts: list[Prompt] = []
        least = []
        for number in range(len(data.questions)):
            question = data.questions[(request.seed * RULER_SAMPLES + number) % len(data.questions)]
            ending = request.ending(f"\n\n{TASK}\n\nQuestion: {question.text}", "Answer:")
            rest = len(request.opening) + len(intro) + len(ending) + self.room
            rng = np.random.default_rng([request.seed, number])
            context, needed = _context(request, data, question, request.length - rest, rng)
            least.append(rest - len(request.opening) + needed)
            if context is not None:
                tokens = np.concatenate([request.opening, intro, context, ending])
                chat = request.template is not None
                prompts.append(Prompt(tokens, question.answers, (), None, self.room, any_answer=True, chat=chat))
            if len(prompts) == request.trials:
                return prompts
        request.check_length(sorted(least)[min(request.trials, len(least)) - 1])
        raise LongRopeError(
            f"trials = {request.trials}: {self.data} has {len(data.questions)} questions. Ask for fewer trials."
        )


def _context(
    request: PromptRequest, data: QuestionSet, question: Question, size: int, rng: np.random.Generator
) -> tuple[np.ndarray | None, int]:
    """Return ``size`` tokens of shuffled documents, None if the question's do not fit, and the tokens of these."""
    chosen: list[np.ndarray] = []
    total = needed = 0
    for count, document in enumerate(_documents(request, data, question, rng), start=1):
        (heading,) = _headings(request, range(count, count + 1))
        total += len(heading) + len(document)
        chosen.append(document)
        needed = total if count == len(question.documents) else needed
        if total >= size and needed:
            break
    if needed > size:
        return None, needed
    if total < size:
        raise LongRopeError(
            f"ruler_data = {request.ruler_data}: all documents together have {total:,} tokens, too short a haystack "
            f"for length {request.length:,}, which needs {size:,}. Lower the length."
        )
    last_size = len(chosen[-1]) - (total - size)
    chosen = [*chosen[:-1], chosen[-1][:last_size]] if last_size > 0 else chosen[:-1]
    headings = _headings(request, range(1, len(chosen) + 1))
    order = rng.permutation(len(chosen))
    pieces = [piece for heading, i in zip(headings, order, strict=True) for piece in (heading, chosen[i])]
    return np.concatenate(pieces), needed


def _documents(
    request: PromptRequest, data: QuestionSet, question: Question, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the tokens of the question's documents, of those of its article, and of the others in random order."""
    known = [*question.documents, *rng.permutation(question.related).astype(int).tolist()]
    others = np.setdiff1d(np.arange(len(data.documents)), known)
    order = [*known, *rng.permutation(others).tolist()]
    ends = [*range(len(question.documents), len(order), BATCH), len(order)]  # often the question's are enough
    for first, end in pairwise([0, *ends]):
        yield from encode_within(request.tokenizer, [data.documents[i] for i in order[first:end]])


def _headings(request: PromptRequest, numbers: Sequence[int]) -> list[np.ndarray]:
    """Return the tokens before each document by its number, with the empty line above them."""
    return encode_within(request.tokenizer, [f"\n\nDocument {i}:\n" for i in numbers])
