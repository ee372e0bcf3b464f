"""Put factors into a model for the length of a `with` block, and measure what they do.

`tiny` was trained on 256 tokens. Look at 1,024: without factors its perplexity rises with the length, with YaRN's it
falls, as more context should make it. At 256 tokens the plain model is the better one. After the block it is as before.
"""

import numpy as np

from longrope import Rope, draw, load, load_documents, patch, perplexity, scheme, split, token_losses

model, tokenizer = load("tiny", dtype="float32")
unseen = split(load_documents("stdlib:unseen"))  # parts of Python's library that tiny was not trained on
tokens = draw(unseen["test"], tokenizer, length=1024, count=4).tokens
yarn = scheme("yarn", Rope.of(model), 1024)

before = token_losses(model, tokens)
with patch(model, yarn):
    patched = token_losses(model, tokens)
after = token_losses(model, tokens)

print("tokens   original       YaRN")
for length in (256, 512, 1024):
    print(f"{length:6} {perplexity(before, length).perplexity:10.1f} {perplexity(patched, length).perplexity:10.1f}")

assert perplexity(patched, 1024).perplexity < perplexity(patched, 256).perplexity
assert perplexity(before, 1024).perplexity > 2 * perplexity(patched, 1024).perplexity
assert perplexity(before, 256).perplexity < perplexity(patched, 256).perplexity
assert np.array_equal(before, after)
print("after the block the losses are bit for bit those of before")
