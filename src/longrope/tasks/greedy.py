"""Generate the answers to a batch of prompts, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from longrope.models.backbone import cache_argument
from longrope.tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    last: Tensor,
    cache: DynamicCache,
) -> tuple[list[str], list[bool]]:
    """Return the texts chosen greedily after each prompt, and whether their logits are finite.

    A text ends at a stop token, or where it has all that the score asks for: more text would not change the score.

    Args:
        model: A causal language model.
        tokenizer: Tokenizer of the model.
        prompts: Prompts with the same room for their answers.
        last: Last token of each prompt, ``(prompts, 1)``.
        cache: Keys and values of the tokens before them; those of the answers are added.
    """
    stops = _stop_tokens(model, tokenizer)
    generated: list[list[int]] = [[] for _ in prompts]
    texts, finite, ended = [""] * len(prompts), [True] * len(prompts), [False] * len(prompts)
    for _ in range(prompts[0].room):
        logits = model(input_ids=last, use_cache=True, **{cache_argument(model): cache}).logits[:, -1]
        row_is_finite = logits.amax(-1).isfinite().tolist()  # a model may mask single tokens by -inf
        last = logits.argmax(-1, keepdim=True)
        for row, token in enumerate(last[:, 0].tolist()):
            if ended[row]:
                continue
            finite[row] &= row_is_finite[row]
            ended[row] = token in stops
            if not ended[row]:
                generated[row].append(token)
                texts[row] = str(tokenizer.decode(generated[row], skip_special_tokens=True))
                ended[row] = prompts[row].score(texts[row]) == 1
        if all(ended):
            break
    return texts, finite


def _stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end a text: those of the model's generation config, else the tokenizer's."""
    config = model.generation_config
    stops: Any = None if config is None else config.eos_token_id
    stops = tokenizer.eos_token_id if stops is None else stops
    return [stops] if isinstance(stops, int) else list(stops or ())
