"""Find the best of many candidates with a full pass of few: the first one, and the leaders in its frozen contexts."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence

from longrope.scaling import Scaling
from longrope.search.protocol import CandidateBatch, CandidateLoss

LEADERS = 3


def evaluate_leaders(
    candidates: Sequence[Scaling],
) -> Generator[CandidateBatch, list[CandidateLoss], dict[Scaling, float]]:
    """Yield batches, and return the loss of each candidate that got a full pass.

    An objective without frozen contexts evaluates all candidates on all tokens. So does one whose first loss is not
    finite, because its contexts rank nothing.

    Args:
        candidates: Candidates; the first one gets a full pass, and then those that are best in its frozen contexts.
    """
    first, *others = dict.fromkeys(candidates)
    (answer,) = yield CandidateBatch([first], reference=first, counts=False)
    losses = {first: answer.loss}
    if others and not math.isfinite(answer.loss):
        answers = yield CandidateBatch(others, counts=False)
        return losses | {candidate: answer.loss for candidate, answer in zip(others, answers, strict=True)}
    if others:
        answers = yield CandidateBatch(others, reference=first, counts=False)
        ranked = sorted(zip(others, answers, strict=True), key=lambda pair: pair[1].loss)
        for leader, _ in ranked[:LEADERS]:
            (answer,) = yield CandidateBatch([leader], reference=leader, counts=False)
            losses[leader] = answer.loss
    return losses
