"""A scheme is a function from the geometry and a length to a `Scaling`: write one and measure it against YaRN.

This one leaves pairs alone that turn more than 3 times within the window, slows those down by a little more than the
scale that turn less than 0.3 times, and lets the logarithm of the factor rise in a straight line in between. YaRN's
ramp begins at 32 turns, so it slows down pairs that the model knows well. Look at which of the two has the lower loss.
"""

import numpy as np

from longrope import (
    Rope,
    Scaling,
    attention_factor,
    draw_tokens,
    load,
    load_documents,
    perplexity,
    scheme,
    split_documents,
)


def ramp(rope: Rope, length: int) -> Scaling:
    """Factors that rise between 3 turns and 0.3 turns within the window."""
    turns = rope.original_length / rope.wavelengths
    height = np.clip(np.log(3 / turns) / np.log(3 / 0.3), 0, 1)
    factors = (1.15 * rope.scale(length)) ** height
    return Scaling(
        factors.tolist(), attention_factor=attention_factor("su", rope, length), scheme="ramp", length=length
    )


model, tokenizer = load("tiny", dtype="float32")
rope = Rope.of(model)
tokens = draw_tokens(split_documents(load_documents("stdlib:unseen"))["test"], tokenizer, length=2048, count=4).tokens
candidates = {"yarn": scheme("yarn", rope, 2048), "ramp": ramp(rope, 2048)}
found = {name: perplexity(model, tokens, [256, 2048], scaling=scaling) for name, scaling in candidates.items()}

for name, rows in found.items():
    print(f"{name}:", ", ".join(f"{row.perplexity:.2f} at {row.length:,} tokens" for row in rows))
differences = np.array(found["ramp"][1].losses) - np.array(found["yarn"][1].losses)
print("ramp's loss less YaRN's at 2,048 tokens, document by document:", differences.round(3))
assert found["ramp"][1].perplexity < found["yarn"][1].perplexity
