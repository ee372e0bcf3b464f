"""What a call of transformers' ``generate`` asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from longrope.errors import LongRopeError
from longrope.scaling import Extension

DEFAULT_NEW = 20  # transformers' own, where neither max_new_tokens nor max_length is given


@dataclass(frozen=True)
class Prompts:
    """What a call of ``generate`` asks for: tokens of each row as it is run, and how many more at most."""

    mask: Tensor
    lengths: list[int]
    width: int
    new: int
    chunk: int | None
    assisted: bool


def read_prompts(
    model: PreTrainedModel, inputs: Tensor | None, config: GenerationConfig | None, options: dict[str, Any]
) -> Prompts:
    """What a call of ``generate`` asks for; sets ``max_new_tokens`` in ``options`` where nothing limits it.

    Raises:
        LongRopeError: if it has no token ids.
    """

    def option(name: str, default: Any = None) -> Any:
        given: list[Any] = [options.get(name), *(getattr(one, name, None) for one in (config, model.generation_config))]
        return next((value for value in given if value is not None), default)

    ids = options.get("input_ids") if inputs is None else inputs
    if ids is None or ids.dim() != 2 or ids.is_floating_point():
        raise LongRopeError("input_ids: generate needs the prompts as token ids here, (rows, tokens)")
    new = option("max_new_tokens")
    if new is None and option("max_length") is None:
        new = options["max_new_tokens"] = DEFAULT_NEW  # else transformers ends it at the model's original length
    mask = options.get("attention_mask")
    if mask is None:  # as transformers guesses it
        pad, eos = option("pad_token_id", -1), option("eos_token_id")
        mask = torch.ones_like(ids) if pad in (eos if isinstance(eos, list) else [eos]) else ids.ne(pad).long()
    copies = max(option("num_beams", 1), option("num_return_sequences", 1))
    return Prompts(
        mask=mask,
        lengths=mask.sum(dim=-1).repeat_interleave(copies).tolist(),
        width=ids.shape[1],
        new=option("max_length") - ids.shape[1] if new is None else new,
        chunk=option("prefill_chunk_size"),
        assisted=options.get("assistant_model") is not None or option("prompt_lookup_num_tokens") is not None,
    )


def check_prompts(prompts: Prompts, extension: Extension, policy: str) -> None:
    """Refuse what is longer than the extension, or what its policy cannot do.

    Raises:
        LongRopeError: says what to change.
    """
    longest = max(prompts.lengths)
    if longest + prompts.new > extension.length:
        raise LongRopeError(
            f"{longest} tokens of prompt and max_new_tokens = {prompts.new} make {longest + prompts.new}, above the "
            f"extension's length = {extension.length}; shorten the prompt, generate less, or extend the model further"
        )
    if policy == "switch" and prompts.assisted:
        raise LongRopeError("policy = 'switch' cannot do assisted generation or prompt lookup; use pin or static")
    if policy == "switch" and prompts.mask.shape[1] != prompts.width:
        raise LongRopeError("policy = 'switch' needs the whole text as input_ids, also what is in past_key_values")
