"""Does a model find what is asked for at the end of a long text? What it says, and what it would choose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedModel

from longrope.models.device_memory import explain_out_of_memory
from longrope.tasks.haystack import encode_within
from longrope.tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptScore:
    """What a model made of a probe.

    Args:
        score: share of the answers that occur in what it said, from 0 to 1.
        text: what it said, greedily.
        loss: of the answer, the mean over its tokens in nats; None where several are wanted.
        choice: whether the answer has a lower mean loss than each of the wrong ones; None where there are none.
        margin: nats from the answer's mean loss up to the lowest of the wrong ones; below 0 if the choice is wrong.
    """

    score: float
    text: str
    loss: float | None = None
    choice: bool | None = None
    margin: float | None = None


def matched(text: str, answers: Sequence[str]) -> float:
    """RULER's string match (arXiv 2404.06654): the share of the answers that occur in a text, in whatever case.

    >>> matched("They are KAPPA and 12.", ["kappa", "12", "13", "14"])
    0.5
    """
    return sum(answer.lower() in text.lower() for answer in answers) / len(answers)


def score_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Prompt],
    *,
    batch: int = 1,
    done: Callable[[int], object] | None = None,
) -> list[PromptScore]:
    """What a model says to each probe, greedily, and for a single answer what it would choose.

    A prompt passes through the backbone once, its keys and values serve all that follows, and there are logits for
    the answers' tokens only.

    Args:
        model: patched or not. Factors that go by the length of each pass do not fit one that grows token by token:
            patch with those of the probes' length.
        tokenizer: of the model.
        probes: from `longrope.tasks.registry.make_probes`.
        batch: prompts of the same length in one forward pass.
        done: called with the number of finished probes.

    Raises:
        LongRopeError: if memory runs out; says at which length.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for i, probe in enumerate(probes):
        groups.setdefault((len(probe.tokens), probe.room), []).append(i)
    outcomes: dict[int, PromptScore] = {}
    for (prompt, room), members in groups.items():
        for start in range(0, len(members), batch):
            chosen = members[start : start + batch]
            where = f"with batch {len(chosen)} on {model.device}"
            with explain_out_of_memory(prompt + room, where, "lower the length or the batch, or use dtype bfloat16"):
                found = _score(model, tokenizer, [probes[i] for i in chosen])
            outcomes |= zip(chosen, found, strict=True)
            if done is not None:
                done(len(outcomes))
    return [outcomes[i] for i in range(len(probes))]


@torch.inference_mode()
def _score(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, probes: Sequence[Prompt]) -> list[PromptScore]:
    prompts = torch.from_numpy(np.stack([probe.tokens for probe in probes])).to(model.device)
    cache = DynamicCache()  # one that keeps all, so that it can be cropped in layers with a window too
    model.base_model(input_ids=prompts[:, :-1], past_key_values=cache, use_cache=True)
    losses = _option_losses(model, tokenizer, probes, prompts[:, -1:], cache)
    made = _greedy(model, prompts[:, -1:], cache, probes[0].room, _stops(model, tokenizer))
    outcomes = []
    for probe, own, tokens in zip(probes, losses, made, strict=True):
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        margin = min(own[1:]) - own[0] if len(own) > 1 else None
        choice = None if margin is None else margin > 0
        outcomes.append(PromptScore(matched(text, probe.answers), text, own[0] if own else None, choice, margin))
    return outcomes


def _option_losses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    probes: Sequence[Prompt],
    last: Tensor,
    cache: DynamicCache,
) -> list[list[float]]:
    """The mean loss of the answer and of each wrong one, by probe; none where several answers are wanted."""
    options = [[*probe.answers, *probe.wrong] if len(probe.answers) == 1 else [] for probe in probes]
    losses: list[list[float]] = [[] for _ in probes]
    for number in range(max(map(len, options))):
        chosen = [f" {own[number]}" if number < len(own) else "" for own in options]
        encoded = encode_within(tokenizer, chosen)
        size = max(map(len, encoded))
        tokens = np.stack([np.pad(one, (0, size - len(one))) for one in encoded])  # tokens behind change nothing
        targets = torch.from_numpy(tokens).to(last.device)
        inputs = torch.cat([last, targets[:, :-1]], dim=1)
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits.float()
        cache.crop(-size)
        found = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(probes), size)
        for own, row, one in zip(losses, found, encoded, strict=True):
            if len(one):
                own.append(float(row[: len(one)].mean()))
    return losses


def _greedy(
    model: PreTrainedModel, last: Tensor, cache: DynamicCache, room: int, stops: Sequence[int]
) -> list[list[int]]:
    """The most likely tokens after the prompts, until one that stops; by row."""
    made, step, ended = [], last, torch.zeros(len(last), dtype=torch.bool, device=last.device)
    ends = torch.tensor(stops, dtype=last.dtype, device=last.device)
    for _ in range(room):
        step = model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        made.append(step)
        ended |= torch.isin(step[:, 0], ends)
        if ended.all():
            break
    rows = torch.cat(made, dim=1).tolist()
    return [row[: next((i for i, token in enumerate(row) if token in stops), len(row))] for row in rows]


def _stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: those of the model's generation config, else the tokenizer's."""
    config = model.generation_config
    stops: Any = None if config is None else config.eos_token_id
    stops = tokenizer.eos_token_id if stops is None else stops
    return [stops] if isinstance(stops, int) else list(stops or ())
