"""The folder of an adapter, which names the model that it belongs to."""

from __future__ import annotations

import json
from pathlib import Path

from longrope.errors import LongRopeError

CONFIG = "adapter_config.json"
FACTORS = "extension.json"  # beside an adapter that is switched with its factors
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # of a whole model
MERGEABLE = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA")  # peft_type of adapters in the weights


def split_adapters(name: str | Path) -> tuple[str, list[Path]]:
    """Return the name of a whole model, and the folders of the adapters that belong on it, the first to add first.

    Args:
        name: Name of a model, or folder of an adapter on a model or on another adapter.

    Raises:
        LongRopeError: The config of an adapter is damaged, names no base model, names the adapter itself, or a folder
            that does not exist.
    """
    adapters: list[Path] = []
    name = str(name)
    while (base := base_of(name)) is not None:
        adapters.insert(0, Path(name))
        if Path(base) in adapters:
            raise LongRopeError(
                f"base_model_name_or_path = {base!r}: the adapter in {name} is its own base. "
                f"Name the model that it was trained on in {CONFIG}."
            )
        name = base
    if adapters and is_path(name) and not Path(name).exists():
        raise LongRopeError(
            f"base_model_name_or_path = {name!r}: there is no such folder. If the base model was moved, write its "
            f"folder into {adapters[0] / CONFIG}."
        )
    return name, adapters


def is_path(name: str) -> bool:
    """Return whether a name can only be that of a folder or file, and not a hub id."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def base_of(folder: str | Path) -> str | None:
    """Return the name of the model that the adapter in a folder belongs to.

    It is None if the folder holds no adapter, one beside the weights of a whole model, or one of a kind that cannot be
    merged.

    Raises:
        LongRopeError: The config of the adapter is damaged, or names no base model.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        return None
    fault = LongRopeError(
        f"model = {str(folder)!r}: its {CONFIG} is damaged or names no base model. "
        "Write the model's name there, as base_model_name_or_path."
    )
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
        base, kind = fields["base_model_name_or_path"], fields.get("peft_type")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise fault from None
    if not is_switched(folder):
        has_weights = any(path for pattern in WEIGHTS for path in folder.glob(pattern))
        if has_weights or kind not in MERGEABLE:
            return None
    if not isinstance(base, str) or not base:
        raise fault
    return base


def is_switched(folder: str | Path) -> bool:
    """Return whether a folder holds an adapter with factors beside it, which it follows."""
    return (Path(folder) / CONFIG).is_file() and (Path(folder) / FACTORS).is_file()


def require_peft(folder: Path) -> None:
    """Raise unless the package ``peft`` is installed.

    Args:
        folder: Folder of the adapter that needs it.

    Raises:
        LongRopeError: The package is missing.
    """
    try:
        import peft  # noqa: F401
    except ImportError:
        raise LongRopeError(f'model = {str(folder)!r} needs the package peft: pip install "longrope[lora]"') from None
