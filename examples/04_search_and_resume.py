"""Search factors with a small budget, stop in the middle, and go on from the journal.

Every evaluation is appended to a journal. Look at the second run: it starts where the first one was stopped, computes
nothing twice. The winner is then chosen on a document that the search did not see; it may be a closed form.
"""

import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from longrope import (
    METHODS,
    Budget,
    ModelObjective,
    Rope,
    Space,
    find_factors,
    load,
    load_documents,
    perplexity_texts,
    scheme,
)
from longrope.data.split import draw_tokens, split_documents
from longrope.search.run import SearchObjectives, SearchRun

LENGTH = 1024
model, tokenizer = load("tiny", dtype="float32")
rope, parts, cma = Rope.of(model), split_documents(load_documents("stdlib:unseen")), METHODS["cma"]
searched, held_out = (
    perplexity_texts(draw_tokens(parts[part], tokenizer, length=LENGTH, count=1).tokens)
    for part in ("search", "held_out")
)
space = Space(rope, LENGTH, ceiling=cma.ceiling, parametrization=cma.parametrization)
starts = [scheme(name, rope, LENGTH) for name in cma.schemes]


def stop(_: int, progress: Any) -> None:
    """Acts as someone who presses Ctrl-C after 8 evaluations."""
    if progress.evaluations == 8:
        raise KeyboardInterrupt


with tempfile.TemporaryDirectory() as name:
    objectives = SearchObjectives.of(partial(ModelObjective, model), searched, held_out)
    search = partial(find_factors, space, objectives, Path(name), method=cma, starts=starts)
    run = SearchRun(budget=Budget(tokens=20 * LENGTH))
    journal = Path(name) / "search-0.jsonl"
    with suppress(KeyboardInterrupt):
        search(run=run, on_progress=stop)
    first = journal.read_text()
    found = search(run=replace(run, existing="resume"))
    second = journal.read_text()

print(first.count('"loss"'), "evaluations before it was stopped,", second.count('"loss"'), "in the end")
print("why it ended:", found.outcomes[0].stopped)
print("loss on the held-out document:", {name: round(loss, 3) for name, loss in found.held_out.items()})
assert second.startswith(first)
assert (first.count('"loss"'), second.count('"loss"')) == (8, 20)
assert min(found.held_out, key=found.held_out.__getitem__) == found.extension.long.scheme
