"""A search minimises what you say: each `WeightedText` is a text and a weight for the loss of every token.

Three ways to judge the same factors on the same documents: all tokens alike (perplexity), planted lines that the text
asks for again (needles), and weights of our own: only tokens that repeat what stood more than a window ago. Look at
the heuristic: the plain mean hardly tells it from YaRN, the needles do. `find_factors` takes any such items.
"""

import numpy as np

from longrope import (
    ModelObjective,
    Rope,
    WeightedText,
    load,
    load_documents,
    needle_texts,
    perplexity_texts,
    scheme,
)
from longrope.data.split import draw_tokens, split_documents

LENGTH, WINDOW, COPIED = 1024, 256, 4


def far_copies(tokens: np.ndarray) -> WeightedText:
    """Count the tokens that end a run of `COPIED` tokens seen before, but not within the last `WINDOW`."""
    last, weights = {}, np.zeros(len(tokens) - 1)
    for end in range(COPIED, len(tokens) + 1):
        run = tuple(tokens[end - COPIED : end])
        weights[end - 2] = run in last and end - last[run] > WINDOW
        last[run] = end
    return WeightedText(tokens, weights / weights.sum())


model, tokenizer = load("tiny", dtype="float32")
tokens = draw_tokens(
    split_documents(load_documents("stdlib:unseen"))["search"], tokenizer, length=LENGTH, count=2
).tokens
judges = {
    "all tokens": perplexity_texts(tokens),
    "needles": needle_texts(tokens, tokenizer),
    "far copies": [far_copies(row) for row in tokens],
}
candidates = {name: scheme(name, Rope.of(model), LENGTH) for name in ("pi", "ntk", "heuristic", "yarn")}

print(f"{'mean loss (nats)':16}", *(f"{name:>10}" for name in candidates))
losses = {}
for judge, items in judges.items():
    objective = ModelObjective(model, items)
    batches = [[(scaling, item)] for scaling in candidates.values() for item in range(len(items))]
    answers = [answers[0].loss for _, answers in objective.evaluate(batches, gradient=False)]
    losses[judge] = dict(zip(candidates, np.reshape(answers, (len(candidates), -1)).mean(axis=1), strict=True))
    print(f"{judge:16}", *(f"{loss:10.2f}" for loss in losses[judge].values()))

gap = {judge: found["heuristic"] - found["yarn"] for judge, found in losses.items()}
print({judge: f"heuristic {value:+.2f} against YaRN" for judge, value in gap.items()})
assert gap["needles"] > 2 * gap["all tokens"]
