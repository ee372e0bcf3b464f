"""Factors that others published, read into the same noun: a `config.json` of Hugging Face, a `.csv` of LongRoPE.

Look at two things: YaRN read from a config is our YaRN, number for number; and a table has factors only, so that the
length and the attention factor are ours to add.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from longrope import Extension, Rope, Scaling, attention_factor, load_factors, scheme

rope = Rope(dim=128, base=10_000.0, original_length=4096)
yarn = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}
config = {"head_dim": 128, "rope_theta": 10_000.0, "max_position_embeddings": 131_072, "rope_scaling": yarn}

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
    (Path(name) / "config.json").write_text(json.dumps(config))
    extension = load_factors(name)  # a folder, such as a downloaded checkpoint
    layer = ",".join(f"{factor:.2f}" for factor in np.linspace(1, 32, 64))
    (Path(name) / "factors.csv").write_text(f"{layer}\n" * 32)  # one line a layer, all alike
    table = load_factors(Path(name) / "factors.csv")

assert isinstance(extension, Extension)
assert isinstance(table, Scaling)
ours = scheme("yarn", rope, 131_072)
difference = np.abs(np.array(extension.long.factors) - ours.factors).max()
print(f"config.json: {extension.long.scheme}, {extension.scale:g}x {extension.rope}")
print(f"its factors differ from ours by {difference:.0e} at the most")

print(f"factors.csv: {len(table.factors)} factors, length {table.length}, attention factor {table.attention_factor}")
complete = replace(table, length=131_072, attention_factor=attention_factor("su", rope, 131_072))
ready = Extension.of(rope, complete)  # what patch, export and generating take
print(f"made complete: {ready.length:,} tokens, attention factor {ready.long.attention_factor:.4f}")
assert extension.rope == ready.rope == rope
assert difference < 1e-12
assert extension.long.attention_factor == ours.attention_factor
