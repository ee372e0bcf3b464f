"""Quantised weights: what their kernels need, and whether they let gradients through."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from longrope.errors import LongRopeError

TOKENS = 8
SCALE_BITS = 0.5  # of a weight's share of its scales, at most
PACKAGES = {  # quant_method: packages that transformers loads its weights with, as module and as pip calls it
    "aqlm": {"aqlm": "'aqlm[gpu,cpu]'"},
    "auto-round": {"auto_round": "auto-round"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "eetq": {"kernels": "kernels"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "quark": {"quark": "amd-quark"},
    "sinq": {"sinq": "sinq"},
    "torchao": {"torchao": "torchao"},
    "vptq": {"vptq": "vptq"},
}


def method_of(config: Any) -> str | None:
    """Return the ``quant_method`` of a config; None if its weights are not quantised."""
    fields: Any = getattr(config, "quantization_config", None)
    if fields is None:
        return None
    fields = fields if isinstance(fields, dict) else fields.to_dict()
    if "quant_method" not in fields and (fields.get("load_in_4bit") or fields.get("load_in_8bit")):
        return "bitsandbytes"
    return str(getattr(fields.get("quant_method"), "value", fields.get("quant_method") or "some method"))


@dataclass(frozen=True)
class QuantizedBits:
    """Bits of a weight on the device, with its share of the scales; None where weights are not quantised there.

    Args:
        of_layers: Bits in linear layers but the head.
        of_experts: Bits in experts that are one tensor.
    """

    of_layers: float | None = None
    of_experts: float | None = None


def bits_of_weights(config: Any, device: str) -> QuantizedBits:
    """Return the bits of a model's weights on a device, where they surely stay quantised.

    compressed-tensors unpacks them there, and fp8 and mxfp4 need the kernels of a GPU.

    Args:
        config: The model's config.
        device: A torch device.
    """
    method, fields = method_of(config), getattr(config, "quantization_config", None)
    fields = fields if isinstance(fields, dict) else {} if fields is None else fields.to_dict()
    bits = fields.get("bits") if method in ("gptq", "awq", "auto-round") else None
    if method == "bitsandbytes":
        bits = 4 if fields.get("load_in_4bit") else 8
    if device.startswith("cuda") and method in ("fp8", "fbgemm_fp8"):
        bits = 8
    if device.startswith("cuda") and method == "mxfp4" and _is_installed("kernels"):
        return QuantizedBits(of_experts=4 + SCALE_BITS)
    return QuantizedBits() if not isinstance(bits, int) else QuantizedBits(bits + SCALE_BITS, bits + SCALE_BITS)


def trains_adapters(config: Any, device: str) -> bool:
    """Return whether adapters train beside a config's quantised weights on a device; tried with int8 and FP8 on a CPU.

    4-bit weights of bitsandbytes let no gradient through on some CPUs after a pass without gradients.

    Args:
        config: The model's config, with quantised weights.
        device: A torch device.
    """
    four_bits = bits_of_weights(config, device).of_layers == 4 + SCALE_BITS
    return method_of(config) in ("bitsandbytes", "fp8") and not (four_bits and device == "cpu")


def check_method(name: str, method: str | None) -> None:
    """Refuse weights in a format that transformers would read as if they were not quantised.

    Args:
        name: Name of the model, for the message.
        method: The ``quant_method`` of its config; None if its weights are not quantised.

    Raises:
        LongRopeError: transformers does not know the method.
    """
    known = {key.removesuffix("_4bit").removesuffix("_8bit") for key in AUTO_QUANTIZATION_CONFIG_MAPPING}
    if method is not None and method not in known:
        raise LongRopeError(
            f"quantization_config.quant_method = {method!r}: transformers does not read this format of the weights of "
            f"{name}. Write the config alone, for the engine that reads them: {config_command(name)}. "
            "If the weights are not quantised, remove quantization_config."
        )


def kernel_error(name: str, method: str, target: str, reason: str) -> LongRopeError:
    """Return the error for quantised weights that cannot be loaded, with the packages that are missing.

    Args:
        name: Name of the model.
        method: The ``quant_method`` of its config.
        target: Device that it is loaded to, such as " on cuda".
        reason: First line of the error of transformers.
    """
    absent = [package for module, package in PACKAGES.get(method, {}).items() if not _is_installed(module)]
    install = f"Run pip install {' '.join(absent)}, or write" if absent else "Write"
    return LongRopeError(
        f"quantization_config.quant_method = {method!r}: the weights of {name} cannot be loaded{target} "
        f"({reason.rstrip('.')}). {install} the config alone, without weights: {config_command(name)}."
    )


def config_command(name: str) -> str:
    """Return the command that exports a model without its weights."""
    return f"longrope export {name} --factors FACTORS --config-only -o OUTPUT"


def _is_installed(module: str) -> bool:
    parent, _, _ = module.partition(".")
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


@contextmanager
def quiet_output(quantization: str | None) -> Iterator[None]:
    """Send to standard error what a package that loads quantised weights prints, which would break ``--json``."""
    if quantization is None:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def unpack_weights(model: PreTrainedModel) -> None:
    """Run what a package does before the first pass of a whole model, which a pass through its layers would miss.

    compressed-tensors unpacks the weights then.
    """
    if method_of(model.config) is not None and model._forward_pre_hooks:
        _short_pass(model)


def gradient_barrier(model: PreTrainedModel) -> str | None:
    """Return why no gradient by the factors passes through a model's quantised weights; None if it does.

    A pass over a few tokens runs without gradients, after which some kernels hold their weights in another layout. Each
    module then runs forwards and backwards on its own input. A kernel without a backward pass may raise an error, but
    may also give gradients of 0.
    """
    method = method_of(model.config)
    if method is None:
        return None
    names: list[str] = []

    def check(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:
        if not names and not _passes_gradient(module, inputs, named):
            names.append(type(module).__name__)

    leaves = [module for module in model.modules() if _is_leaf(module)]
    hooks = [leaf.register_forward_hook(check, with_kwargs=True) for leaf in leaves]
    try:
        _short_pass(model)
    finally:
        for hook in hooks:
            hook.remove()
    return f"the {method} weights of {names[0]} let no gradient through on {model.device.type}" if names else None


def _is_leaf(module: nn.Module) -> bool:
    """Return whether a module without others in it holds weights; a rotary module holds frequencies alone."""
    names = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    return bool(names) and not any(True for _ in module.children()) and not any("inv_freq" in name for name in names)


@torch.no_grad()
def _short_pass(model: PreTrainedModel) -> None:
    tokens = torch.arange(1, TOKENS + 1, device=model.device) % model.config.get_text_config().vocab_size
    model(input_ids=tokens[None], use_cache=False)


def _passes_gradient(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Return whether a module's output has a gradient by its first input; True for a module of token ids."""
    if not inputs or not isinstance(inputs[0], Tensor) or not inputs[0].is_floating_point():
        return True
    first = inputs[0].detach().clone().requires_grad_()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch names kernels without a backward pass
            output = module.forward(first, *inputs[1:], **named)
            output = output if isinstance(output, Tensor) else output[0]
            slopes = torch.linspace(1, 2, output.numel(), device=output.device)
            (gradient,) = torch.autograd.grad((output.flatten().float() * slopes).sum(), first, allow_unused=True)
    except Exception as error:  # each kernel fails in its own way
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    return gradient is not None and bool(gradient.any())
