"""Generate with an extension so that a key/value cache never mixes its short and its long factors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessorList, PreTrainedModel

from longrope.errors import LongRopeError, unknown
from longrope.models.backbone import backbone_of
from longrope.models.cache import cache_argument
from longrope.models.finite_logits import FiniteLogits
from longrope.models.generate_request import GenerateRequest, check_request, read_request
from longrope.models.grouped_attention import grouped_attention
from longrope.models.growing_cache import GrowingLayer, growing_cache
from longrope.models.patch import patch, replacing
from longrope.models.peft_model import learns_prompts
from longrope.models.rotary_slot import find_rotary_slot
from longrope.scaling import Extension, Scaling, as_extension

POLICIES = ("pin", "switch", "static")


@contextmanager
def generating(model: PreTrainedModel, scaling: Scaling | Extension, policy: str = "pin") -> Iterator[PreTrainedModel]:
    """Let ``model.generate`` use an extension inside a ``with`` block; nothing else in the model changes.

    Every row of a batch has its own factors, selected by its number of tokens without padding:

    - ``pin``: selected once, by the largest length that the row can reach: its prompt and ``max_new_tokens`` (or
      ``max_length``).
    - ``switch``: short factors while the row has at most L0 tokens. When it crosses L0, the cache is computed again
      with the long factors. The result is what the uncached model computes at every length, for one more prefill of
      L0 tokens.
    - ``static``: always the long factors.

    Greedy search, sampling, beams, streamers, left padding and ``prefill_chunk_size`` work as usual. A cache
    that you pass must have been computed with the factors that the policy selects.

    Args:
        model: Causal language model, or one wrapped by ``peft`` or ``torch.compile``; if its checkpoint carries a rope
            scaling, the factors multiply it.
        scaling: An extension of this model, or a scaling: its short set is then the original one.
        policy: One of `POLICIES`.

    Raises:
        LongRopeError: The policy is unknown, or the factors belong to another model. From ``generate``: a row can
            become longer than ``extension.length``, the policy cannot serve the request, or logits are not finite.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    extension = as_extension(scaling, find_rotary_slot(model).rope)
    wrapper, model = model, _within(model)
    if policy == "switch" and learns_prompts(model):
        raise LongRopeError("policy = 'switch' cannot read prompts that peft has learned again; use pin or static")
    model_class: Any = type(model)
    generate = model_class.generate  # transformers' own, also inside another such block

    @functools.wraps(generate)
    def rescaled(
        inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *rest: Any, **options: Any
    ) -> Any:
        request = read_request(model, inputs, generation_config, options)
        check_request(request, extension, policy)
        options["attention_mask"] = request.mask
        processors = rest[0] if rest else options.pop("logits_processor", None)
        rest = (LogitsProcessorList([*(processors or ()), FiniteLogits(model.dtype)]), *rest[1:])
        with_factors = _switching_factors if policy == "switch" else _fixed_factors
        with with_factors(model, extension, policy, request):
            return generate(model, inputs, generation_config, *rest, **options)

    with replacing(model, "generate", rescaled):
        yield wrapper


def _within(model: Any) -> Any:
    """Return the model whose ``generate`` a wrapper of ``torch.compile`` or ``peft`` calls; others themselves.

    A ``PeftModel`` of prompts is returned too, as its own ``generate`` adds them.
    """
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, PreTrainedModel) or learns_prompts(model) or not hasattr(model, "get_base_model"):
        return model
    return model.get_base_model()


def factors_for(extension: Extension, policy: str, prompt_length: int, max_new_tokens: int) -> Scaling:
    """Return the factors that a policy begins with.

    Args:
        extension: Short and long factors.
        policy: One of `POLICIES`.
        prompt_length: Length of the prompt in tokens.
        max_new_tokens: Largest number of tokens to generate.
    """
    if policy == "static":
        return extension.long
    return extension.at(prompt_length if policy == "switch" else prompt_length + max_new_tokens)


@torch.no_grad()
def fill(
    model: PreTrainedModel,
    ids: Tensor,
    cache: Cache,
    *,
    chunk: int | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
) -> Iterator[int]:
    """Compute the keys and values that a cache still lacks, chunk by chunk, with the installed factors.

    Args:
        model: Causal language model; its head does not run.
        ids: All tokens, ``(rows, tokens)``, those in the cache included.
        cache: Cache to fill in place.
        chunk: Tokens in one forward pass (default: all).
        attention_mask: Mask of all tokens, ``(rows, tokens)`` or wider (default: no padding).
        position_ids: Positions of all tokens, ``(rows or 1, tokens)`` or wider (default: 0, 1, 2 …).

    Yields:
        The number of tokens in the cache, after every chunk.
    """
    begin, size = cache.get_seq_length(), ids.shape[1]
    while begin < size:
        end = min(begin + (chunk or size), size)
        with grouped_attention(ids.device):
            backbone_of(model)(
                input_ids=ids[:, begin:end],
                attention_mask=None if attention_mask is None else attention_mask[:, :end],
                position_ids=None if position_ids is None else position_ids[..., begin:end],
                use_cache=True,
                **{cache_argument(model): cache},
            )
        begin = end
        yield begin


def _rows(scalings: Sequence[Scaling]) -> Scaling | Sequence[Scaling]:
    return scalings[0] if all(scaling == scalings[0] for scaling in scalings) else scalings


@contextmanager
def _fixed_factors(
    model: PreTrainedModel, extension: Extension, policy: str, request: GenerateRequest
) -> Iterator[None]:
    scalings = [factors_for(extension, policy, length, request.max_new_tokens) for length in request.lengths]
    prepare = _unpatched_prepare(model)
    with patch(model, _rows(scalings)), replacing(model, "prepare_inputs_for_generation", prepare):
        yield


@contextmanager
def _switching_factors(
    model: PreTrainedModel, extension: Extension, policy: str, request: GenerateRequest
) -> Iterator[None]:
    prepare = _unpatched_prepare(model)
    installed = [extension.at(length) for length in request.lengths]
    with ExitStack() as stack:
        stack.enter_context(patch(model, _rows(installed)))

        @functools.wraps(prepare)
        def prepare_with_switch(input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            nonlocal installed
            generated = max(input_ids.shape[1] - request.width, 0)  # a chunk of the prompt is narrower
            scalings = [extension.at(length + generated) for length in request.lengths]
            if scalings != installed:
                installed = scalings
                stack.enter_context(patch(model, _rows(scalings)))
                if (cache := inputs.get(cache_argument(model))) is not None:
                    _empty(cache, model)
                    layout = {key: inputs.get(key) for key in ("attention_mask", "position_ids")}
                    for _ in fill(model, input_ids[:, :-1], cache, chunk=request.chunk, **layout):
                        pass
            return prepare(input_ids, **inputs)

        stack.enter_context(replacing(model, "prepare_inputs_for_generation", prepare_with_switch))
        yield


def _empty(cache: Cache, model: PreTrainedModel) -> None:
    if isinstance(cache, DynamicCache):  # its reset() leaves zeros in transformers below 5.18
        has_room = any(isinstance(layer, GrowingLayer) for layer in cache.layers)
        cache.layers = (growing_cache if has_room else DynamicCache)(config=model.config).layers
    else:
        cache.reset()


def _unpatched_prepare(model: PreTrainedModel) -> Callable[..., dict[str, Any]]:
    """Return the model's ``prepare_inputs_for_generation``.

    Phi-3's drops the cache itself when the batch crosses L0, so models like it get transformers' general one.
    """
    has_two_sets = hasattr(model.config, "original_max_position_embeddings")
    owner: Any = GenerationMixin if has_two_sets else type(model)
    return functools.partial(owner.prepare_inputs_for_generation, model)
