"""Provenance of results: command, versions, machine, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import sys
from pathlib import Path

import torch

from longrope import __version__


def provenance(device: str = "cpu") -> dict[str, object]:
    """Return the command as it was typed, versions, machine (without its name) and date as JSON values.

    Args:
        device: The torch device that computed the results.
    """
    program = Path(sys.argv[0])
    return {
        "command": shlex.join([program.parent.name if program.name == "__main__.py" else program.name, *sys.argv[1:]]),
        "versions": {
            "longrope": __version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "numpy")},
            "python": platform.python_version(),
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": _device_name(device),
        },
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def _device_name(device: str) -> str:
    """Return the name of a GPU; of one in other machines, such as those of a Ray cluster, its torch device."""
    is_here = device.startswith("cuda") and torch.cuda.is_available()
    return torch.cuda.get_device_name(device) if is_here else device
