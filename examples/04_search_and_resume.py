"""Search factors with a small budget, stop, and resume from the journal with a larger one.

Every evaluation is appended to a journal. Look at the second run: it starts where the first one stopped, and computes
nothing twice. The winner is then chosen on a document that the search did not see; it may be a closed form.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import longrope as lr

LENGTH = 1024
model, tokenizer = lr.load("tiny", dtype="float32")
first = lr.SearchOptions(budget=8 * LENGTH, needles=0.0, search_documents=1, held_out_documents=1)
more = replace(first, budget=20 * LENGTH, existing="resume")

with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    lr.search(model, tokenizer, length=LENGTH, method="cma", output=folder, options=first)
    before = (Path(folder) / "search-0.jsonl").read_text()
    found = lr.search(model, tokenizer, length=LENGTH, method="cma", output=folder, options=more)
    after = (Path(folder) / "search-0.jsonl").read_text()

print(before.count('"loss"'), "evaluations before it was stopped,", after.count('"loss"'), "in the end")
print("why it ended:", found.outcomes[0].stopped)
print("loss on the held-out document:", {name: round(loss, 3) for name, loss in found.held_out.items()})
assert after.startswith(before)
assert (before.count('"loss"'), after.count('"loss"')) == (13, 35)
assert min(found.held_out, key=found.held_out.__getitem__) == found.extension.long.scheme
