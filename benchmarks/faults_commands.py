"""Small runs of search, extend, eval and export on ``tiny``, seconds each: for ``faults.py``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from longrope.data.stdlib import stdlib_documents

TEXTS, LENGTH = "texts", 320
PLAN = """version = 1
attention = "none"
export = "dual"
{stages}
[recovery.search]
documents = 1
needles = 0
budget = 1500
[data]
source = "{texts}"
repeats = 9
[evaluation]
documents = 1
schemes = ["yarn"]
retrieval = []
"""
STAGE = """[[stages]]
length = {length}
[stages.search]
documents = 1
needles = 0
budget = 1500
[stages.finetune]
steps = 2
batch = 1
save_every = 1
dtype = "float32"
"""
SPARSE = """version = 1
[[stages]]
length = 2048
[stages.search]
documents = 1
budget = 14000
[stages.finetune]
steps = 3
batch = 2
save_every = 1
window = 512
windows = "sparse"
short = 0.5
answers = 3
average = 0.25
dtype = "float32"
[stages.finetune.distill]
weight = 1.0
[recovery.search]
documents = 1
needles = 0
budget = 1500
[data]
source = "../texts"
needles = 0.5
repeats = 9
[evaluation]
lengths = [2048]
documents = 1
schemes = ["yarn"]
retrieval = []
"""  # sparse windows, distillation, averaged weights, a search with questions in frozen contexts


@dataclass(frozen=True)
class Command:
    """A command to kill: its line, the option to resume it, and files by the phase that has then begun, in order."""

    line: str
    again: str
    marks: dict[str, str]


COMMANDS = {
    "search": Command(
        f"search tiny --dtype float32 -l {LENGTH} --data ../{TEXTS} --search-documents 1 --held-out-documents 1 "
        "--needles 0 --budget 2500 -o run",
        "--resume",
        {"run/search-0.jsonl": "search", "run/held-out.jsonl": "held-out", "run/extension.json": "record"},
    ),
    "extend": Command(
        "extend tiny ../plan.toml --dtype float32 -o run",
        "--resume",
        {
            "run/run.json": "search 1",
            "run/stage-1/extension.json": "fine-tuning 1",
            "run/stage-1/model": "search 2",
            "run/stage-2/extension.json": "fine-tuning 2",
            "run/stage-2/model": "recovery",
            "run/extension.json": "measuring",
            "run/results.json": "export",
            "run/checkpoint": "end",
        },
    ),
    "sparse": Command(
        "extend tiny ../sparse.toml --dtype float32 -o run",
        "--resume",
        {
            "run/run.json": "search",
            "run/stage-1/extension.json": "fine-tuning",
            "run/stage-1/model": "recovery",
            "run/extension.json": "measuring",
            "run/results.json": "export",
            "run/checkpoint": "end",
        },
    ),
    "eval": Command(
        f"eval tiny --dtype float32 --lengths 256,{LENGTH} --documents 3 --data ../{TEXTS} --schemes pi,yarn "
        "--stride 200 -o run",
        "--resume",
        {"run/cells.jsonl": "measuring", "run/results.json": "end"},
    ),
    "export": Command(
        "export tiny --factors ../search/run --no-check -o run",
        "--overwrite",
        {".run.tmp": "writing", "run": "end"},
    ),
}


def prepare(folder: Path) -> None:
    """Write texts and a plan."""
    texts = folder / TEXTS
    texts.mkdir(exist_ok=True)
    for name, text in stdlib_documents(unseen=True)[:24]:
        (texts / f"{name}.txt").write_text(text[:8000], encoding="utf-8")
    stages = "".join(STAGE.format(length=length) for length in (LENGTH, LENGTH + 64))
    (folder / "plan.toml").write_text(PLAN.format(stages=stages, texts=f"../{TEXTS}"), encoding="utf-8")
    (folder / "sparse.toml").write_text(SPARSE, encoding="utf-8")
