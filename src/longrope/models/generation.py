"""Generate with an extension so that a key/value cache never mixes its short and its long factors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel

from longrope.errors import unknown
from longrope.models.generate_request import Prompts, check_prompts, read_prompts
from longrope.models.patch import patch
from longrope.models.rotary_slot import find_rotary_slot
from longrope.scaling import Extension, Scaling, as_extension

POLICIES = ("pin", "switch", "static")


@contextmanager
def generating(model: PreTrainedModel, scaling: Scaling | Extension, policy: str = "pin") -> Iterator[PreTrainedModel]:
    """Let ``model.generate`` work with an extension inside a ``with`` block; all else in the model stays as it is.

    Every row of a batch has its own factors, chosen by its tokens without padding:

    - ``pin``: once, by the longest that the row can get: its prompt and ``max_new_tokens`` (or ``max_length``).
    - ``switch``: short ones while the row has at most L0 tokens. When it crosses, the cache is computed anew with the
      long ones: what the uncached model computes at every length, for one more prefill of L0 tokens.
    - ``static``: the long ones always.

    Greedy search, sampling, beams, streamers, left padding and ``prefill_chunk_size`` work as always. A cache that
    is given as ``past_key_values`` must have been made with the factors that the policy chooses.

    Args:
        model: a causal language model whose checkpoint carries no rope scaling of its own.
        scaling: An extension of this model, or a scaling: its short set is then the original one.
        policy: one of `POLICIES`.

    Raises:
        LongRopeError: if the policy is unknown or the extension is another model's; from ``generate``, if a row can
            get longer than ``extension.length``, or the policy cannot do what is asked.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    extension = as_extension(scaling, find_rotary_slot(model).rope)
    kind: Any = type(model)
    generate = kind.generate  # transformers' own, also inside another such block

    @functools.wraps(generate)
    def rescaled(
        inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, *rest: Any, **options: Any
    ) -> Any:
        prompts = read_prompts(model, inputs, generation_config, options)
        check_prompts(prompts, extension, policy)
        options["attention_mask"] = prompts.mask
        running = _switching if policy == "switch" else _fixed
        with running(model, extension, policy, prompts):
            return generate(model, inputs, generation_config, *rest, **options)

    with _shadowing(model, "generate", rescaled):
        yield model


def factors_for(extension: Extension, policy: str, prompt: int, new: int) -> Scaling:
    """The factors that a policy begins with, for a prompt and at most so many new tokens."""
    return extension.long if policy == "static" else extension.at(prompt if policy == "switch" else prompt + new)


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
    """Put into a cache what it does not hold yet of some tokens, a chunk at a time, under the factors in place.

    Args:
        model: a causal language model; its head does not run.
        ids: all the tokens, ``(rows, tokens)``, also those that the cache holds.
        cache: filled in place.
        chunk: tokens at a time; all at once if None.
        attention_mask: of all the tokens, ``(rows, tokens)`` or longer; none are padding if not given.
        position_ids: of all the tokens, ``(rows or 1, tokens)`` or longer; 0, 1, 2 … if not given.

    Yields:
        How many tokens the cache holds, after every chunk.
    """
    begin, size = cache.get_seq_length(), ids.shape[1]
    while begin < size:
        end = min(begin + (chunk or size), size)
        model.base_model(
            input_ids=ids[:, begin:end],
            attention_mask=None if attention_mask is None else attention_mask[:, :end],
            position_ids=None if position_ids is None else position_ids[..., begin:end],
            past_key_values=cache,
            use_cache=True,
        )
        yield (begin := end)


def _rows(scalings: Sequence[Scaling]) -> Scaling | Sequence[Scaling]:
    return scalings[0] if all(scaling == scalings[0] for scaling in scalings) else scalings


@contextmanager
def _fixed(model: PreTrainedModel, extension: Extension, policy: str, prompts: Prompts) -> Iterator[None]:
    scalings = [factors_for(extension, policy, length, prompts.new) for length in prompts.lengths]
    with patch(model, _rows(scalings)), _shadowing(model, "prepare_inputs_for_generation", _preparing(model)):
        yield


@contextmanager
def _switching(model: PreTrainedModel, extension: Extension, policy: str, prompts: Prompts) -> Iterator[None]:
    prepare, held = _preparing(model), [extension.at(length) for length in prompts.lengths]
    with ExitStack() as stack:
        stack.enter_context(patch(model, _rows(held)))

        @functools.wraps(prepare)
        def prepared(input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
            nonlocal held
            more = max(input_ids.shape[1] - prompts.width, 0)  # a chunk of the prompt is narrower
            wanted = [extension.at(length + more) for length in prompts.lengths]
            if wanted != held:
                held = wanted
                stack.enter_context(patch(model, _rows(wanted)))
                if (cache := inputs.get("past_key_values")) is not None:
                    _empty(cache, model)
                    given = {key: inputs.get(key) for key in ("attention_mask", "position_ids")}
                    for _ in fill(model, input_ids[:, :-1], cache, chunk=prompts.chunk, **given):
                        pass
            return prepare(input_ids, **inputs)

        stack.enter_context(_shadowing(model, "prepare_inputs_for_generation", prepared))
        yield


def _empty(cache: Cache, model: PreTrainedModel) -> None:
    if isinstance(cache, DynamicCache):  # its reset() leaves zeros in transformers below 5.18
        cache.layers = DynamicCache(config=model.config).layers
    else:
        cache.reset()


def _preparing(model: PreTrainedModel) -> Callable[..., dict[str, Any]]:
    """Its ``prepare_inputs_for_generation``; Phi-3's would drop the cache itself when the batch crosses L0."""
    own: Any = type(model) if not hasattr(model.config, "original_max_position_embeddings") else GenerationMixin
    return functools.partial(own.prepare_inputs_for_generation, model)


@contextmanager
def _shadowing(model: PreTrainedModel, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Put a function of one instance before its method, and take it away again."""
    before = vars(model).get(name)
    setattr(model, name, function)
    try:
        yield
    finally:
        if before is None:
            delattr(model, name)
        else:
            setattr(model, name, before)
