"""Use the rotary module alone: cos and sin are exact at two million tokens.

In float32 the product of position and frequency loses digits as the position grows, and cos and sin belong to a wrong
angle. The error of the product grows with the position; the error of `LongRoPE` does not.
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
    product_error, module_error = (np.abs(x.double().numpy() - exact).max() for x in (product, cos[0, :, :64]))
    errors.append((product_error, module_error))
    print(f"{position:10,} {product_error:16.1e} {module_error:10.1e}")

assert all(module_error < 1e-6 for _, module_error in errors)
assert errors[-1][0] > 100 * errors[0][0] > 1e-3
