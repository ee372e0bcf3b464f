"""Generate across the model's window without mixing two sets of factors in one cache.

An extended model has short factors up to 256 tokens and long ones beyond. A cache that was filled with the short ones
is wrong for the long ones. The example compares logits beyond the window with those of a pass without a cache:
`generating` recomputes the cache when the text crosses the window, a plain `generate` continues with a mixed cache.
"""

from typing import Any

import torch

from longrope import Extension, Rope, generating, load, load_documents, patch, scheme
from longrope.data.split import draw_tokens, split_documents

model: Any
model, tokenizer = load("tiny", dtype="float32")
rope = Rope.of(model)
extension = Extension.of(rope, scheme("yarn", rope, 2048))
tokens = draw_tokens(split_documents(load_documents("stdlib:unseen"))["test"], tokenizer, length=248, count=1).tokens
prompt = torch.from_numpy(tokens)
options = {"max_new_tokens": 16, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}

with generating(model, extension, "switch"):
    consistent = model.generate(prompt, **options)
with patch(model, extension):
    mixed = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)


def error(output: Any) -> float:
    """Return the relative error of the last logits against one pass over the same text without a cache."""
    with patch(model, extension), torch.no_grad():
        exact = model(output.sequences[:, :-1], use_cache=False).logits[0, -1]
    return ((output.logits[-1][0] - exact).norm() / exact.norm()).item()


print(tokenizer.decode(consistent.sequences[0, 248:]))
print(f"relative error of the last logits: generating {error(consistent):.1e}, plain generate {error(mixed):.1e}")
assert error(consistent) < 1e-4 < 0.01 < error(mixed)
