"""Evaluate factors side by side and take the results as a pandas table (pip install "longrope[pandas]")."""

import longrope as lr

model, tokenizer = lr.load("tiny", dtype="float32")
candidates = {name: lr.scheme(name, lr.Rope.of(model), 1024) for name in ("pi", "yarn")}
results = lr.evaluate(model, tokenizer, candidates, lengths=[256, 1024], data="stdlib:unseen")
frame = results.to_frame("perplexity")
table = frame.pivot_table(index="candidate", columns="length", values="perplexity").round(1)
print(table)

assert table[1024].idxmin() == "yarn"
