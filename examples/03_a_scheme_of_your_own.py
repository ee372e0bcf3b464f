"""Write a scheme: a function from rope and length to a `Scaling`. Name it in SCHEMES and compare it with YaRN."""

import numpy as np

import longrope as lr


def ramp(rope: lr.Rope, length: int) -> lr.Scaling:
    """Return factors that rise from 1 (pairs with 3 turns within L0) to 1.15 · s (pairs with 0.3 turns)."""
    rise = np.clip(np.log(3 * rope.wavelengths / rope.original_length) / np.log(3 / 0.3), 0, 1)
    factors = (1.15 * rope.scale(length)) ** rise
    return lr.Scaling(factors.tolist(), attention_factor=lr.attention_factor("su", rope, length), length=length)


lr.SCHEMES["my_ramp"] = ramp
model, tokenizer = lr.load("tiny", dtype="float32")
candidates = {name: lr.scheme(name, lr.Rope.of(model), 2048) for name in ("yarn", "my_ramp")}
results = lr.evaluate(model, tokenizer, candidates, lengths=[256, 2048], data="stdlib:unseen")
print({name: [round(record.perplexity, 2) for record in results["perplexity"][name]] for name in candidates})
assert results["perplexity"]["my_ramp"][-1].perplexity < results["perplexity"]["yarn"][-1].perplexity
