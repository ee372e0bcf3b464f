"""Refuse a model whose weights are not all the checkpoint's, by transformers' report on loading it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from longrope.errors import LongRopeError

# tensors that a causal language model computes without: buffers that it fills by itself, and modules beside it
HARMLESS = re.compile(
    r"(rotary_emb|rotary_pos_emb|rope)\.(cos|sin|inv_freq)|(^|\.)(inv_freq|position_ids|masked_bias|causal_mask)$"
    r"|\.(attention|attn)\.bias$"  # the causal mask of old GPT checkpoints
    r"|\.(k|v|kv)_scale$"  # of an 8-bit cache
    r"|(^|\.)(mtp|v_head|vision_tower|vision_model|visual|audio_tower|multi_modal_projector)\."
)
BUFFERS = re.compile(r"(^|\.)(inv_freq|original_inv_freq|position_ids|masked_bias|causal_mask)$")
WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DataParallel or DistributedDataParallel",
    "_fsdp_wrapped_module.": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "base_model.model.": "a PEFT model",
}
NAMED = 3


def check_loading_report(name: str, model_class: str, report: Mapping[str, Any]) -> None:
    """Raise unless every weight of a model came from its checkpoint and every tensor of the checkpoint was used.

    Args:
        name: Name of the model, for the message.
        model_class: Name of the model's class in transformers.
        report: Loading info of ``from_pretrained(…, output_loading_info=True)``.

    Raises:
        LongRopeError: Tensors are missing, unexpected or of another shape, and are not known to be harmless.
    """
    missing = sorted(key for key in report["missing_keys"] if not BUFFERS.search(key))
    unexpected = sorted(key for key in report["unexpected_keys"] if not HARMLESS.search(key))
    mismatched = sorted(report["mismatched_keys"])
    shapes = [f"{key}: {_shape(stored)}, not {_shape(shape)}" for key, stored, shape in mismatched]
    complaints = [
        _count(missing, "missing in it"),
        _count(unexpected, f"in it and unknown to {model_class}"),
        _count(shapes, "of another shape"),
        *(str(message).strip() for message in report.get("error_msgs", ())),
    ]
    complaints = [complaint for complaint in complaints if complaint]
    if complaints:
        raise LongRopeError(
            f"model = {name!r}: its checkpoint is not one of {model_class} with this config: {'; '.join(complaints)}. "
            f"transformers would fill in random weights. {_remedy(missing, unexpected)}"
        )


def _count(names: list[str], fault: str) -> str:
    """Return how many tensors have a fault, with the first names; empty if none has it."""
    if not names:
        return ""
    rest = ", …" if len(names) > NAMED else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} {fault} ({', '.join(names[:NAMED])}{rest})"


def _shape(sizes: Collection[int]) -> str:
    return "x".join(str(size) for size in sizes)


def _remedy(missing: list[str], unexpected: list[str]) -> str:
    """Return what to do, from what the names have in common."""
    if any("lora_" in key for key in unexpected):
        return "It holds a LoRA adapter: save the model after PEFT's merge_and_unload()."
    if any(key.endswith(("scale_inv", "weight_scale", "qweight", "qzeros", "absmax")) for key in unexpected):
        return "Its weights are quantised and its config has no quantization_config: fetch its config.json again."
    wrappers = [wrapper for wrapper in WRAPPERS if any(wrapper in key for key in unexpected)]
    plain = {_unwrapped(key, wrappers) for key in unexpected}
    if wrappers and (not missing or plain & set(missing)):
        marks = " and ".join(f"{wrapper!r} ({WRAPPERS[wrapper]})" for wrapper in wrappers)
        return f"The names of its tensors contain {marks}: {_renaming(wrappers[0])}"
    prefix = _common_prefix(missing, unexpected)
    if prefix:
        return f"The names of its tensors begin with {prefix!r} once too often: {_renaming(prefix)}"
    return "Fetch all files of the checkpoint again, or give the config.json that belongs to them."


def _unwrapped(key: str, wrappers: list[str]) -> str:
    for wrapper in wrappers:
        key = key.replace(wrapper, "")
    return key


def _renaming(prefix: str) -> str:
    return (
        "save the model that is inside, or rename the tensors with "
        f"{{key.replace({prefix!r}, '', 1): tensor for key, tensor in load_file(path).items()}} and safetensors."
    )


def _common_prefix(missing: list[str], unexpected: list[str]) -> str:
    """Return the prefix by which at least half of the unexpected names differ from missing ones; empty if none."""
    absent = set(missing)
    prefixes = Counter(
        key[:start]
        for key in unexpected
        for start in (match.end() for match in re.finditer(r"\.", key))
        if key[start:] in absent
    )
    prefix, count = prefixes.most_common(1)[0] if prefixes else ("", 0)
    return prefix if 2 * count >= len(unexpected) else ""
