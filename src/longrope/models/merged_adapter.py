"""Merge an adapter of ``peft`` into the weights of the model that it was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from longrope.errors import LongRopeError
from longrope.models.adapter_folder import CONFIG, base_of, require_peft

NAMED = 3


def merge_peft(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter in a folder to the weights of its base model, in place.

    Raises:
        LongRopeError: The package ``peft`` is missing, or the adapter was trained on another model.
    """
    require_peft(folder)
    from peft import PeftConfig, PeftModel
    from safetensors import SafetensorError

    conversions = vars(model).get("_weight_conversions")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft names here what the report below holds
        try:
            config = PeftConfig.from_pretrained(str(folder))
            config.inference_mode = True
            adapted: Any = PeftModel(model, config)
            report = adapted.load_adapter(str(folder), "default", torch_device=str(model.device))
        except (ValueError, RuntimeError, KeyError, OSError, TypeError, SafetensorError) as error:
            raise _misfit(folder, str(error).strip().splitlines()[-1].strip()) from error
        for names, fault in ((report.unexpected_keys, "unknown to the model"), (report.missing_keys, "missing in it")):
            if names:
                rest = ", …" if len(names) > NAMED else ""
                raise _misfit(folder, f"{len(names)} tensors are {fault}: {', '.join(sorted(names)[:NAMED])}{rest}")
        adapted.merge_and_unload()
    vars(model)["_weight_conversions"] = conversions
    vars(model).pop("peft_config", None)


def _misfit(folder: Path, reason: str) -> LongRopeError:
    return LongRopeError(
        f"base_model_name_or_path = {base_of(folder)!r}: the adapter in {folder} does not fit this model "
        f"({reason.rstrip('.')}). Name the model that it was trained on in {CONFIG}. "
        "If tokens were added to that model, merge the adapter with peft's AutoPeftModelForCausalLM first."
    )
