"""A plan takes a model further in stages: factors, fine-tuning at that length, then the next stage.

Stages multiply: from 256 to 512 to 1,024 tokens is 2 times 2. Here the factors come from a scheme, which takes seconds;
`factors = "search"` (the default) searches them. The rows are candidates. Each stage's factors lower the perplexity at
1,024 tokens, and so does each fine-tuning, a little, because it has six steps only.
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

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
    (Path(name) / "plan.toml").write_text(PLAN)
    run = StagedRun(Path(name) / "run", "tiny", load_plan(str(Path(name) / "plan.toml")), dtype="float32")
    begin_run(run, resume=False)
    extension = extend(run)  # after a crash, begin_run(run, resume=True) and extend(run) continue
    perplexities = json.loads((run.folder / "results.json").read_text())["perplexity"]

for candidate, records in perplexities.items():
    row = ", ".join(f"{record['perplexity']:7.2f} at {record['length']:,}" for record in records)
    print(f"{candidate:16}", row)
assert extension.length == 1024
assert max(extension.long.factors) == 4.0
assert perplexities["extended"][-1]["perplexity"] < perplexities["1k yarn"][-1]["perplexity"]
