"""Every scheme is a list of factors: compare the schemes on the 32 pairs of `tiny`, at 8 times its window.

A pair turns once in its wavelength. A factor of 1 leaves it unchanged, a factor of 8 slows it down 8 times. Look at the
line of the critical pair: from there on, no pair finishes a turn within the window, so at longer distances these pairs
reach angles that the model never saw. PI slows all pairs down; the other schemes spare the fast ones.
"""

from longrope import SCHEMES, Rope, scheme

rope = Rope(dim=64, base=10_000.0, original_length=256)  # Rope.of(model) reads it from a model
length = 2048
scalings = {name: scheme(name, rope, length) for name in SCHEMES}

print(f"{'pair':>4} {'wavelength':>10}", *(f"{name:>11}" for name in scalings))
for pair in range(1, rope.dim // 2, 3):
    note = "  <- critical pair" if pair == rope.critical_pair else ""
    values = (f"{scaling.factors[pair]:11.2f}" for scaling in scalings.values())
    print(f"{pair:4} {rope.wavelengths[pair]:10.0f}", *values, note)
print(f"{'attention factor':>15}", *(f"{scaling.attention_factor:11.2f}" for scaling in scalings.values()))

scale = rope.scale(length)
assert all(factor == scale for factor in scalings["pi"].factors)
assert all(scaling.factors[0] < 1.2 for name, scaling in scalings.items() if name != "pi")
assert all(scaling.factors[-1] > 0.75 * scale for scaling in scalings.values())
critical = rope.critical_pair
assert rope.wavelengths[critical - 1] <= rope.original_length < rope.wavelengths[critical]
print(f"pair {critical} is the first that needs more than {rope.original_length} tokens for a turn")
