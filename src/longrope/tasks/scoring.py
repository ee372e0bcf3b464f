"""Score a model on the prompts of a retrieval task: the text it generates and the answer it would choose."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from longrope.data.tokenize import encode_within
from longrope.models.cache import ReadText
from longrope.models.device_memory import explain_out_of_memory
from longrope.tasks.greedy import generate_answers
from longrope.tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptScore:
    """The result of a model on one prompt.

    Args:
        score: Share of the answers that occur in the generated text, or whether one of them does where one is enough,
            from 0 to 1; NaN where logits are not finite, and the fields after the text are None then.
        text: Text generated greedily, up to the last answer if it has all of them.
        loss: Mean loss of the answer's tokens in nats; None for several answers.
        choice: Whether the answer has a lower mean loss than each wrong one; None without wrong ones.
        margin: Nats from the answer's mean loss up to the lowest of the wrong ones; below 0 for a wrong choice.
        exact: Whether each token of the answer is the most likely one after those before it, as it must be for greedy
            generation to begin with the answer; None for several answers.
    """

    score: float
    text: str
    loss: float | None = None
    choice: bool | None = None
    margin: float | None = None
    exact: bool | None = None


def score_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    batch: int = 1,
    on_progress: Callable[[int], object] | None = None,
    on_document: Callable[[Tensor, Tensor], object] | None = None,
) -> list[PromptScore]:
    """Return a score for each prompt: what the model generates, and for a single answer which option it prefers.

    A prompt passes through the backbone once. Its keys and values serve the generation and every option, and the head
    runs only on their tokens. The tokens that the questions of one document share pass once for all of them. A document
    that begins with the whole document before it is read on from there.

    Args:
        model: A causal language model, patched or not. Patch it with the factors of the prompts' length: factors that
            depend on the length of each pass do not fit a text that grows token by token.
        tokenizer: Tokenizer of the model.
        prompts: Prompts from `longrope.tasks.registry.make_prompts`.
        batch: Prompts of equal length in one forward pass. Questions of one document follow each other.
        on_progress: Called after each batch and each document with the number of finished prompts.
        on_document: Called with the tokens ``(1, tokens)`` that are read of a document before its questions, and with
            the backbone's last hidden states of them, ``(1, tokens, hidden)``.

    Raises:
        LongRopeError: If memory runs out.
    """
    scores: dict[int, PromptScore] = {}
    document = _Document(ReadText(model))
    for members in _groups(prompts, batch):
        group = [prompts[i] for i in members]
        batch_and_device = f"with batch {1 if group[0].shared else len(group)} on {model.device}"
        length = len(group[0].tokens) + group[0].room
        with explain_out_of_memory(length, batch_and_device, "lower the length or the batch, or use dtype bfloat16"):
            if group[0].shared:
                document = document.begun(group[0].tokens[: group[0].shared])
                group_scores = _score_questions(document, tokenizer, group, on_document)
            else:
                group_scores = _score(ReadText(model), tokenizer, group)
        scores |= zip(members, group_scores, strict=True)
        if on_progress is not None:
            on_progress(len(scores))
    return [scores[i] for i in range(len(prompts))]


def _groups(prompts: Sequence[Prompt], batch: int) -> Iterator[list[int]]:
    """Yield the indices of the questions of each document, and of batches of other prompts of equal lengths."""
    groups: dict[object, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt.document or (len(prompt.tokens), prompt.room), []).append(i)
    for members in groups.values():
        size = len(members) if prompts[members[0]].shared else batch
        for start in range(0, len(members), size):
            yield members[start : start + size]


class _Document:
    """The tokens of a document that questions share, and those of them that are read.

    Args:
        prefix: The first tokens, as the model has read them.
        tokens: Token ids ``(tokens,)``.
    """

    def __init__(self, prefix: ReadText, tokens: np.ndarray | None = None) -> None:
        self.prefix = prefix
        self.tokens = np.empty(0, dtype=np.int64) if tokens is None else tokens

    def begun(self, tokens: np.ndarray) -> _Document:
        """Return a document of which this one is read if its tokens begin with all of this one's."""
        begins = np.array_equal(tokens[: len(self.tokens)], self.tokens)
        return _Document(self.prefix if begins else ReadText(self.prefix.model), tokens)


@torch.inference_mode()
def _score_questions(
    document: _Document,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    on_document: Callable[[Tensor, Tensor], object] | None,
) -> list[PromptScore]:
    """Return the scores of the questions of one document, one by one, so that no question depends on others."""
    prefix = document.prefix
    rest = torch.from_numpy(document.tokens[None, prefix.size :]).to(prefix.model.device)
    hidden = prefix.read(rest)
    if on_document is not None:
        on_document(rest, hidden)
    del hidden
    scores = []
    for prompt in prompts:
        with prefix.continued() as question:
            scores += _score(question, tokenizer, [prompt])
    return scores


@torch.inference_mode()
def _score(prefix: ReadText, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[PromptScore]:
    """Return the scores of a batch of prompts, whose first tokens may already be read."""
    tokens = torch.from_numpy(np.stack([prompt.tokens for prompt in prompts])).to(prefix.model.device)
    if prefix.size < tokens.shape[1] - 1:
        prefix.read(tokens[:, prefix.size : -1])
    losses, exact = _option_losses(prefix, tokenizer, prompts, tokens[:, -1:])
    texts, finite = generate_answers(prefix, tokenizer, prompts, tokens[:, -1:])
    scores = []
    for prompt, options, answer_is_exact, text, is_finite in zip(prompts, losses, exact, texts, finite, strict=True):
        if not is_finite or not all(map(math.isfinite, options)):
            scores.append(PromptScore(math.nan, text))
            continue
        loss = options[0] if options else None
        margin = min(options[1:]) - options[0] if len(options) > 1 else None
        choice = None if margin is None else margin > 0
        scores.append(PromptScore(prompt.score(text), text, loss, choice, margin, answer_is_exact))
    return scores


def _option_losses(
    prefix: ReadText, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], last: Tensor
) -> tuple[list[list[float]], list[bool | None]]:
    """Return the mean losses of the answer and each wrong one, and whether the answer is the most likely text.

    Both are lists by prompt; prompts with several answers have no losses, and None.
    """
    options = [[*prompt.answers, *prompt.wrong] if len(prompt.answers) == 1 else [] for prompt in prompts]
    losses: list[list[float]] = [[] for _ in prompts]
    exact: list[bool | None] = [None] * len(prompts)
    for number in range(max(map(len, options))):
        texts = [f" {strings[number]}" if number < len(strings) else "" for strings in options]
        encoded = encode_within(tokenizer, texts)
        size = max(map(len, encoded))
        padded = np.stack([np.pad(ids, (0, size - len(ids))) for ids in encoded])  # tokens behind change nothing
        targets = torch.from_numpy(padded).to(last.device)
        inputs = torch.cat([last, targets[:, :-1]], dim=1)
        with prefix.continued() as option:
            logits = option.logits(inputs).float()
        by_token = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(prompts), size)
        for prompt_losses, row, ids in zip(losses, by_token, encoded, strict=True):
            if len(ids):
                prompt_losses.append(float(row[: len(ids)].mean()))
        if number == 0:
            likely = (logits.argmax(-1) == targets).cpu()
            exact = [
                bool(row[: len(ids)].all()) if len(ids) else None for row, ids in zip(likely, encoded, strict=True)
            ]
    return losses, exact
