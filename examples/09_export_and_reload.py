"""Export a checkpoint that transformers opens without longrope, and compare it with the patched model.

The fields of its config carry the factors. Its logits equal those of the patched model at every length, within the
window and beyond.
"""

import json
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM

from longrope import Extension, Rope, check_parity, export, load, scheme

model, tokenizer = load("tiny", dtype="float32")
rope = Rope.of(model)
extension = Extension.of(rope, scheme("heuristic", rope, 1024))

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
    folder = Path(temporary) / "tiny-1k"
    export(model, tokenizer, extension, folder)
    print("files:", ", ".join(sorted(path.name for path in folder.iterdir())))
    config = json.loads((folder / "config.json").read_text())
    opened = AutoModelForCausalLM.from_pretrained(folder)  # transformers alone
    parities = check_parity(folder, model)

scaling = config["rope_scaling"]
print(f"max_position_embeddings {config['max_position_embeddings']}, rope_scaling: {', '.join(scaling)}")
for parity in parities:
    print(f"{parity.length:5} tokens: logits differ by {parity.difference:.0e} of their size")
assert (
    scaling["long_factor"] == scaling["short_factor"] == list(extension.long.factors)
)  # static: the same at all lengths
assert opened.config.max_position_embeddings == 1024
assert all(parity.difference < 1e-3 for parity in parities)
