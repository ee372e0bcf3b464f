"""How far a model with each set of factors is from a server's answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.servers.answers import Answer
from longrope.servers.next_tokens import next_token_logprobs
from longrope.servers.served_sets import ServedSets, relative

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def squared_distances(
    model: PreTrainedModel, served: ServedSets, answers: Sequence[Answer], on_progress: Callable[[int, int, str], None]
) -> list[dict[str, float]]:
    """Return the distance of each set from each answer, by answer and set.

    Args:
        model: The checkpoint.
        served: Sets to compare.
        answers: Answers with generated tokens.
        on_progress: Called with the tokens done, the tokens in all, and the name of the set.

    Returns:
        Mean squares of the difference of log-probabilities in nats²; for answers without log-probabilities the shares
        of tokens that the model would not choose.
    """
    rope = Rope.of(model)
    total = len(served.sets) * sum(len(answer.tokens) for answer in answers)
    done = 0
    distances: list[dict[str, float]] = [{} for _ in answers]
    for name, scaling in served.sets.items():
        with patch(model, relative(scaling, rope)):
            for answer, by_set in zip(answers, distances, strict=True):
                on_progress(done, total, name)
                tokens = [*answer.tokens, *answer.generated[:-1]]
                by_set[name] = _distance(answer, next_token_logprobs(model, tokens, len(answer.generated)))
                done += len(answer.tokens)
    on_progress(total, total, "")
    return distances


def _distance(answer: Answer, logprobs: Tensor) -> float:
    if not answer.top:
        chosen = logprobs.argmax(-1).tolist()
        return sum(likeliest != token for likeliest, token in zip(chosen, answer.generated, strict=True)) / len(chosen)
    squares = [
        (float(row[token]) - value) ** 2
        for row, top in zip(logprobs, answer.top, strict=True)
        for token, value in top.items()
    ]
    return sum(squares) / len(squares)
