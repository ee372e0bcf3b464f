"""The samples of a retrieval task: a model's answer to every prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING

from longrope.errors import LongRopeError
from longrope.evaluation.candidate import scaling_at
from longrope.evaluation.measurement import SampleSet, Subject, Values, batches

if TYPE_CHECKING:
    from longrope.tasks.prompts import Prompt


def prompt_samples(
    task: str, length: int, prompts: Sequence[Prompt], *, batch: int = 1, questions: int = 1
) -> SampleSet:
    """Return the samples that hold a model's answers to the prompts of a task at one length.

    Args:
        task: Name of the task.
        length: Maximum tokens of each prompt with the room for its answer.
        prompts: Prompts of the task.
        batch: Prompts in one forward pass. All questions of one text follow each other.
        questions: Questions that each text is asked.

    Raises:
        LongRopeError: If a prompt with the room for its answer is longer.
    """
    for prompt in prompts:
        tokens = len(prompt.tokens) + prompt.room
        if tokens > length:
            raise LongRopeError(
                f"retrieval[{task!r}, {length}]: a prompt has {tokens} tokens. Make it for this length."
            )

    def measure(subject: Subject, samples: Sequence[int]) -> Values:
        from longrope.models.patch import patch
        from longrope.tasks.scoring import score_prompts

        with patch(subject.model, scaling_at(subject.scaling, length)):
            for trials in _passes(prompts, samples, batch):
                chosen = [prompts[trial] for trial in trials]
                scores = score_prompts(subject.model, subject.tokenizer, chosen, batch=batch)
                for trial, prompt, score in zip(trials, chosen, scores, strict=True):
                    yield trial, {"depth": prompt.depth, "choices": 1 + len(prompt.wrong), **asdict(score)}

    name = f"retrieval {task} {length}" + (f" {questions} questions" if questions > 1 else "")
    return SampleSet(name, len(prompts), _mean_passed(prompts), measure, length)


def _passes(prompts: Sequence[Prompt], samples: Sequence[int], batch: int) -> Iterator[list[int]]:
    """Yield the samples in groups: all questions of one text, or up to ``batch`` texts."""
    for document, members in groupby(samples, key=lambda sample: prompts[sample].document):
        group = list(members)
        yield from batches(group, batch if document is None else len(group))


def _mean_passed(prompts: Sequence[Prompt]) -> int:
    """Return the tokens that pass through the model for a prompt, in the mean; a shared text passes once."""
    texts = {prompt.document: prompt.shared for prompt in prompts}
    questions = sum(len(prompt.tokens) - prompt.shared + prompt.room for prompt in prompts)
    return round((sum(texts.values()) + questions) / len(prompts))
