"""Tiny checkpoints with quantised weights, in the formats that people publish, and the weights that they stand for.

The float model that `save` returns holds the dequantised weights. It is the reference for formats packed here; what a
library packs is near the model that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

Fields = dict[str, Any]
GROUP = 32  # input features with one scale, where a format has groups
SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256}
FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # of the eight columns in a word
PACKAGES = {  # that load the weights on a CPU; formats without a row need none
    "bitsandbytes int8": ("bitsandbytes",),
    "bitsandbytes nf4": ("bitsandbytes",),
    "torchao int8": ("torchao",),
    "torchao int4": ("torchao",),
    "compressed-tensors int8": ("compressed_tensors",),
    "compressed-tensors int4": ("compressed_tensors",),
    "gptq": ("gptqmodel", "optimum"),
    "awq": ("gptqmodel",),
}


def save(kind: str, folder: Path) -> PreTrainedModel:
    """Save a checkpoint of a kind with a tokenizer, and return a float model with the same weights."""
    families.tokenizer().save_pretrained(folder)
    if kind in BY_LIBRARY:
        model = families.build("llama", **SIZES)
        plain = folder.with_name(f"{folder.name}-plain")
        model.save_pretrained(plain)
        AutoModelForCausalLM.from_pretrained(plain, quantization_config=BY_LIBRARY[kind]()).save_pretrained(folder)
        return model
    if kind == "mxfp4":
        return _save_mxfp4(folder)
    model = families.build("llama", **SIZES)
    model.save_pretrained(folder)
    pack, fields = PACKED[kind]
    tensors, dequantised = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.endswith("proj.weight"):
            packed, dequantised[name] = pack(tensor)
            tensors |= {name.removesuffix("weight") + key: value.contiguous() for key, value in packed.items()}
        else:
            tensors[name] = tensor
    model.load_state_dict(dequantised, strict=False)
    return _write(folder, tensors, fields, model)


def _write(folder: Path, tensors: dict[str, Tensor], fields: Fields, model: PreTrainedModel) -> PreTrainedModel:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": fields}))
    return model


def _grouped(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return numbers 0 to 15, scales and zeros of groups of input features, and those without quantisation.

    ``(out, in)``, ``(out, groups)``, ``(out, groups)``.
    """
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1), grouped.amax(-1)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round().clamp(1, 15)
    numbers = (grouped / scales[..., None] + zeros[..., None]).round().clamp(0, 15)
    return numbers.flatten(1).int(), scales, zeros.int()


def _spread(groups: Tensor) -> Tensor:
    return groups.repeat_interleave(GROUP, dim=1)


def _words(numbers: Tensor, order: list[int] | None = None) -> Tensor:
    """Return eight numbers of 4 bits in each int32, from the last dimension."""
    eights = numbers.long().unflatten(-1, (-1, 8))[..., order or list(range(8))]
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, scales, zeros = _grouped(weight)
    packed = {
        "qweight": _words(numbers).t(),
        "qzeros": _words((zeros - 1).t()),
        "scales": scales.t().half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return packed, (numbers - _spread(zeros)) * _spread(scales)


def _awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, scales, zeros = _grouped(weight)
    packed = {
        "qweight": _words(numbers.t(), AWQ_ORDER),
        "qzeros": _words(zeros.t(), AWQ_ORDER),
        "scales": scales.t().half(),
    }
    return packed, (numbers - _spread(zeros)) * _spread(scales)


def _fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    blocks = weight.unflatten(1, (-1, GROUP)).unflatten(0, (-1, GROUP))
    scales = blocks.abs().amax((1, 3)) / 448
    spread = scales.repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
    numbers = (weight / spread).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale_inv": scales}, numbers.float() * spread


def _int8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = weight.abs().amax(1, keepdim=True) / 127
    numbers = (weight / scales).round().to(torch.int8)
    return {"weight": numbers, "weight_scale": scales}, numbers * scales


def _int4(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    grouped = weight.unflatten(1, (-1, GROUP))
    scales = grouped.abs().amax(-1) / 7
    numbers = (grouped / scales[..., None]).round().clamp(-8, 7).flatten(1).int()
    packed = {
        "weight_packed": _words(numbers + 8),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    return packed, numbers * _spread(scales)


def _save_mxfp4(folder: Path) -> PreTrainedModel:
    """Save a gpt-oss, whose experts alone are quantised: two numbers of 4 bits a byte, and a power of 2 for each 32."""
    sizes = {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16}
    plain = {"rope_type": "default", "rope_theta": 1e4}
    model = families.build("gpt_oss", **sizes, hidden_size=64, intermediate_size=64, rope_parameters=plain)
    model.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        rows = tensors.pop(name).transpose(1, 2).unflatten(-1, (-1, 32))  # (experts, out, groups, 32)
        exponents = (rows.abs().amax(-1) / 6).log2().ceil().clamp(-127, 127)
        scaled = rows / exponents.exp2()[..., None]
        nearest = (scaled.abs()[..., None] - FP4).abs().argmin(-1)
        numbers = nearest + 8 * (scaled < 0)
        tensors[f"{name}_blocks"] = (numbers[..., 0::2] | numbers[..., 1::2] << 4).to(torch.uint8)
        tensors[f"{name}_scales"] = (exponents + 127).to(torch.uint8)
        dequantised = FP4[nearest] * torch.where(scaled < 0, -1.0, 1.0) * exponents.exp2()[..., None]
        model.get_parameter(name).data = dequantised.flatten(2).transpose(1, 2).contiguous()
    fields = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return _write(folder, tensors, fields, model)


def _torchao(name: str, **options: Any) -> Any:
    import torchao.quantization as ao
    from transformers import TorchAoConfig

    return TorchAoConfig(getattr(ao, name)(**options))


def _torchao_int4() -> Any:
    from torchao.quantization.granularity import PerGroup

    return _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(GROUP))


def _compressed(bits: int, form: str, weights: Fields, activations: Fields | None = None) -> Fields:
    numbers = {"num_bits": bits, "type": "int", "symmetric": True}
    group: Fields = {"targets": ["Linear"], "format": form, "weights": numbers | weights}
    if activations is not None:
        group["input_activations"] = numbers | activations
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


BY_LIBRARY: dict[str, Callable[[], Any]] = {
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "torchao int8": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao int4": _torchao_int4,
}
PACKED: dict[str, tuple[Callable[[Tensor], tuple[dict[str, Tensor], Tensor]], Fields]] = {
    "gptq": (_gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}),
    "awq": (_awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}),
    "fp8": (_fp8, {"quant_method": "fp8", "weight_block_size": [GROUP, GROUP], "activation_scheme": "dynamic"}),
    "compressed-tensors int8": (
        _int8,
        _compressed(8, "int-quantized", {"strategy": "channel"}, {"strategy": "token", "dynamic": True}),
    ),
    "compressed-tensors int4": (_int4, _compressed(4, "pack-quantized", {"strategy": "group", "group_size": GROUP})),
}
KINDS = (*BY_LIBRARY, *PACKED, "mxfp4")
