"""Minimise a loss of your own: any function from factors to a number, without a gradient."""

import longrope as lr

model, tokenizer = lr.load("tiny", dtype="float32")
text = "key = river stone\n" + "for name in names: print(name)\n" * 60 + "key = river stone\n"


def loss(scaling: lr.Scaling) -> float:
    """Return the loss of the repeated line."""
    with lr.patch(model, scaling):
        return float(lr.token_losses(model, [tokenizer(text)["input_ids"]])[0][-6:].mean())


result = lr.search(loss, rope=lr.Rope.of(model), length=1024, options=lr.SearchOptions(budget=30))
print({name: round(value, 3) for name, value in result.held_out.items()})
assert loss(result.extension.long) == min(result.held_out.values())
