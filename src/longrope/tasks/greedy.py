"""Generate the answers to a batch of prompts, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import PreTrainedModel

from longrope.models.cache import ReadText
from longrope.tasks.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate_answers(
    prefix: ReadText,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    last: Tensor,
) -> tuple[list[str], list[bool]]:
    """Return the texts chosen greedily after each prompt, and whether their logits are finite.

    A text ends at a stop token, or where it has all that the score asks for: more text would not change the score.

    Args:
        prefix: The tokens of each prompt but the last; those of the answers are read too.
        tokenizer: Tokenizer of the model.
        prompts: Prompts with the same room for their answers.
        last: Last token of each prompt, ``(prompts, 1)``.
    """
    stops = _stop_tokens(prefix.model, tokenizer)
    generated: list[list[int]] = [[] for _ in prompts]
    texts, finite, ended = [""] * len(prompts), [True] * len(prompts), [False] * len(prompts)
    for _ in range(prompts[0].room):
        logits = prefix.logits(last)[:, -1]
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
