"""Put factors into a model for the length of a `with` block, and measure what they do.

`tiny` was trained on 256 tokens. Look at 1,024: without factors its perplexity rises with the length, with YaRN's it
falls, as more context should make it. At 256 tokens the plain model is the better one. After the block it is as before.
"""

import numpy as np

from longrope import (
    Rope,
    draw_tokens,
    load,
    load_documents,
    patch,
    perplexity_of_losses,
    scheme,
    split_documents,
    token_losses,
)

model, tokenizer = load("tiny", dtype="float32")
unseen = split_documents(load_documents("stdlib:unseen"))  # parts of Python's library that tiny was not trained on
tokens = draw_tokens(unseen["test"], tokenizer, length=1024, count=4).tokens
yarn = scheme("yarn", Rope.of(model), 1024)

before = token_losses(model, tokens)
with patch(model, yarn):
    patched = token_losses(model, tokens)
after = token_losses(model, tokens)

print("tokens   original       YaRN")
for length in (256, 512, 1024):
    values = [perplexity_of_losses(losses, length).perplexity for losses in (before, patched)]
    print(f"{length:6} {values[0]:10.1f} {values[1]:10.1f}")

assert perplexity_of_losses(patched, 1024).perplexity < perplexity_of_losses(patched, 256).perplexity
assert perplexity_of_losses(before, 1024).perplexity > 2 * perplexity_of_losses(patched, 1024).perplexity
assert perplexity_of_losses(before, 256).perplexity < perplexity_of_losses(patched, 256).perplexity
assert np.array_equal(before, after)
print("after the block the losses are bit for bit those of before")
