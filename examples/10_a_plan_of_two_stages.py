"""A plan takes a model further in stages: factors, fine-tuning at that length, then the next stage.

Stages multiply: 256 to 512 to 1,024 tokens is 2 times 2. The factors come from a formula here so that it takes
seconds; `factors = "search"` (the default) searches them. Look at the perplexity at 1,024 tokens from row to row: each
stage's factors and each fine-tuning lower it, the latter a little, for it has six steps only.
"""

import json
import tempfile
from pathlib import Path

from longrope import StagedRun, begin_run, extend, load_plan

PLAN = """
version = 1
attention = "none"

[[stages]]
length = 512
factors = "yarn"
[stages.finetune]
steps = 6
batch = 1
rate = 2e-4
dtype = "float32"
save_every = 6

[[stages]]
length = 1024
factors = "yarn"
[stages.finetune]
steps = 6
batch = 1
rate = 2e-4
dtype = "float32"
save_every = 6

[data]
source = "stdlib:unseen"

[evaluation]
documents = 1
lengths = [256, 1024]
schemes = []
"""

with tempfile.TemporaryDirectory() as name:
    (Path(name) / "plan.toml").write_text(PLAN)
    run = StagedRun(Path(name) / "run", "tiny", load_plan(str(Path(name) / "plan.toml")), dtype="float32")
    begin_run(run, resume=False)
    extension = extend(run)  # killed, it goes on from here with begin(run, resume=True)
    measured = json.loads((run.folder / "results.json").read_text())["perplexity"]

for row, cells in measured.items():
    print(f"{row:16}", ", ".join(f"{cell['perplexity']:7.2f} at {cell['length']:,}" for cell in cells))
assert extension.length == 1024
assert max(extension.long.factors) == 4.0
assert measured["extended"][-1]["perplexity"] < measured["1k yarn"][-1]["perplexity"]
