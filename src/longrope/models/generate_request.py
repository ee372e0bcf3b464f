"""The request in a call of transformers' ``generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from longrope.checks import check_vocabulary
from longrope.errors import LongRopeError
from longrope.models.backbone import vocabulary_of
from longrope.scaling import Extension

DEFAULT_NEW_TOKENS = 20  # transformers' default, where neither max_new_tokens nor max_length is set


@dataclass(frozen=True)
class GenerateRequest:
    """The prompts in a call of ``generate`` and the limits of what it generates.

    Args:
        mask: Attention mask of the prompts, ``(rows, tokens)`` or wider with a cache.
        lengths: Prompt length of each generated row in tokens, without padding.
        width: Width of the input ids in tokens, padding included.
        max_new_tokens: Largest number of tokens to generate.
        chunk: Tokens in one prefill chunk; None for a single prefill.
        assisted: Whether a draft model or prompt lookup proposes tokens.
    """

    mask: Tensor
    lengths: list[int]
    width: int
    max_new_tokens: int
    chunk: int | None
    assisted: bool


def read_request(
    model: PreTrainedModel, inputs: Tensor | None, config: GenerationConfig | None, options: dict[str, Any]
) -> GenerateRequest:
    """Read a call of ``generate``; set ``max_new_tokens`` in ``options`` where nothing limits the length.

    Raises:
        LongRopeError: The call has no tokens, or one that the model has no embedding for.
    """

    def option(name: str, default: Any = None) -> Any:
        configs = (config, model.generation_config)
        values: list[Any] = [options.get(name), *(getattr(config, name, None) for config in configs)]
        return next((value for value in values if value is not None), default)

    ids = options.get("input_ids") if inputs is None else inputs
    if ids is None or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        raise LongRopeError("input_ids: missing, empty or not (rows, tokens). Give generate the prompts as token ids.")
    check_vocabulary([ids.cpu().numpy()], vocabulary_of(model), field="input_ids")
    max_new_tokens = option("max_new_tokens")
    if max_new_tokens is None and option("max_length") is None:
        # transformers would stop at the model's original length
        max_new_tokens = options["max_new_tokens"] = DEFAULT_NEW_TOKENS
    mask = options.get("attention_mask")
    if mask is None:  # as transformers guesses it
        pad, eos = option("pad_token_id", -1), option("eos_token_id")
        mask = torch.ones_like(ids) if pad in (eos if isinstance(eos, list) else [eos]) else ids.ne(pad).long()
    copies = max(option("num_beams", 1), option("num_return_sequences", 1))
    return GenerateRequest(
        mask=mask,
        lengths=mask.sum(dim=-1).repeat_interleave(copies).tolist(),
        width=ids.shape[1],
        max_new_tokens=option("max_length") - ids.shape[1] if max_new_tokens is None else max_new_tokens,
        chunk=option("prefill_chunk_size"),
        assisted=options.get("assistant_model") is not None or option("prompt_lookup_num_tokens") is not None,
    )


def check_request(request: GenerateRequest, extension: Extension, policy: str) -> None:
    """Refuse a request that is longer than the extension or that its policy cannot serve.

    Raises:
        LongRopeError: The request is too long, or does not fit the policy.
    """
    longest = max(request.lengths)
    total = longest + request.max_new_tokens
    if total > extension.length:
        raise LongRopeError(
            f"{longest} tokens of prompt and max_new_tokens = {request.max_new_tokens} make {total}, above the "
            f"extension's length = {extension.length}; shorten the prompt, generate less, or extend the model further"
        )
    if policy == "switch" and request.assisted:
        raise LongRopeError("policy = 'switch' cannot do assisted generation or prompt lookup; use pin or static")
    if policy == "switch" and request.mask.shape[1] != request.width:
        raise LongRopeError("policy = 'switch' needs the whole text as input_ids, also what is in the cache")
