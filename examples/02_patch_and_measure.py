"""Put factors into a model for the length of a `with` block, and measure what they do.

`tiny` was trained on 256 tokens. Look at 1,024: without factors its perplexity rises with the length, with YaRN's it
falls, as more context should make it. At 256 tokens the plain model is the better one. After the block it is as before.
"""

import numpy as np

import longrope as lr
from longrope.data.split import draw_tokens, split_documents

model, tokenizer = lr.load("tiny", dtype="float32")
unseen = split_documents(lr.load_documents("stdlib:unseen"))  # parts of Python's library outside tiny's training
tokens = draw_tokens(unseen["test"], tokenizer, length=1024, count=4).tokens
yarn = lr.scheme("yarn", lr.Rope.of(model), 1024)

before = lr.token_losses(model, tokens)
with lr.patch(model, yarn):
    patched = lr.perplexity(model, tokens, lengths=[256, 512, 1024])
after = lr.token_losses(model, tokens)
original = lr.perplexity(model, tokens, lengths=[256, 512, 1024])

print("tokens   original       YaRN")
for plain, scaled in zip(original, patched, strict=True):
    print(f"{plain.length:6} {plain.perplexity:10.1f} {scaled.perplexity:10.1f}")

assert patched[2].perplexity < patched[0].perplexity
assert original[2].perplexity > 2 * patched[2].perplexity
assert original[0].perplexity < patched[0].perplexity
assert np.array_equal(before, after)
print("after the block the losses are bit for bit those of before")
