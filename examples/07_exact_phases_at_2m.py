"""The module alone: positions in, cos and sin out, still exact at two million tokens.

In float32 the product of position and frequency loses digits as the position grows; cos and sin then belong to
another angle. Look at how the error of that product grows with the position and how that of `LongRoPE` does not.
"""

import numpy as np
import torch

from longrope import LongRoPE

rotary = LongRoPE(dim=128, max_position=2_097_152, original_max_position=4096)  # heuristic factors
scaling = rotary.scalings[1]  # the long set
inv_freq = scaling.inv_freq(rotary.rope)  # float64

print(f"{'position':>10} {'float32 product':>16} {'LongRoPE':>10}")
errors = []
for position in (4_097, 131_071, 2_097_151):
    positions = torch.arange(position - 511, position + 1)
    exact = np.cos(positions.numpy()[:, None] * inv_freq) * scaling.attention_factor
    product = torch.cos(positions.float()[:, None] * torch.from_numpy(inv_freq).float()) * scaling.attention_factor
    cos, _ = rotary(torch.zeros(1, 512, 1), positions[None], seq_len=2_097_152)
    found = [np.abs(values.double().numpy() - exact).max() for values in (product, cos[0, :, :64])]
    errors.append(found)
    print(f"{position:10,} {found[0]:16.1e} {found[1]:10.1e}")

assert all(ours < 1e-6 for _, ours in errors)
assert errors[-1][0] > 100 * errors[0][0] > 1e-3
