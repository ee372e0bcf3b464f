"""How an attention layer rotates its keys, found by running it with chosen cos and sin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longrope.errors import LongRopeError

KeysOf = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KeyRotation:
    """A layer's rotation of its keys: ``cos[index]·key + sign·sin[index]·key[partner]`` in each dimension of a head.

    Half-split, interleaved and partial rotations are all of this form.

    Args:
        index: Place of each dimension in cos and sin, ``(head_dim,)``.
        partner: The other dimension of its pair, ``(head_dim,)``.
        sign: Sign of the partner, ``(head_dim,)``; 0 in dimensions that do not rotate.
    """

    index: Tensor
    partner: Tensor
    sign: Tensor

    @classmethod
    def of(cls, keys_of: KeysOf, cos: Tensor) -> KeyRotation:
        """Find the rotation of a layer from its keys for some tokens.

        Args:
            keys_of: Function from cos and sin ``(1, tokens, dim)`` to the keys ``(1, heads, tokens, head_dim)``.
            cos: Any cos, for its shape and dtype.

        Raises:
            LongRopeError: If the keys are not of this form.
        """
        ones, zeros = torch.ones_like(cos), torch.zeros_like(cos)
        key = keys_of(ones, zeros)
        rotates = _differs(keys_of(zeros, zeros), key)
        numbers, index = torch.arange(cos.shape[-1], device=cos.device), torch.zeros_like(rotates, dtype=torch.long)
        for bit in range(int(cos.shape[-1]).bit_length()):  # a factor of 2 is exact in every dtype
            index += _differs(keys_of(ones + (numbers >> bit & 1), zeros), key).long() << bit
        turned, partners = keys_of(zeros, ones).flatten(0, 2).float(), key.flatten(0, 2).float()
        distance = (turned.abs()[:, :, None] - partners.abs()[:, None, :]).abs().amax(dim=0)
        partner = distance.argmin(dim=1)
        sign = torch.sign((turned * partners[:, partner]).sum(dim=0)) * rotates
        rotation = cls(index, partner, sign.to(cos.dtype))
        angles = torch.linspace(0, 3, cos.numel(), device=cos.device).view_as(cos).to(cos.dtype)
        expected = keys_of(angles.cos(), angles.sin())
        error = (rotation.rotate(key, angles.cos(), angles.sin()) - expected).abs().max() / expected.abs().max()
        if not error <= (1e-4 if key.dtype == torch.float32 else 3e-2):  # NaN included
            raise LongRopeError(f"its keys are not rotated in pairs of dimensions (difference {float(error):.2g})")
        return rotation

    def rotate(self, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return rotated keys, ``(batch, heads, tokens, head_dim)``.

        Args:
            key: Keys before their rotation, ``(batch, heads, tokens, head_dim)``.
            cos: Cos of every token, ``(batch, tokens, dim)``.
            sin: Sin of every token, ``(batch, tokens, dim)``.
        """
        rotates = self.sign != 0
        by_dim = torch.where(rotates, cos[:, None, :, self.index], 1)
        rotated = key * by_dim + key[..., self.partner] * (sin[:, None, :, self.index] * self.sign)
        return rotated.to(key.dtype)  # some families keep cos and sin in float32

    def undo(self, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return keys as they were before a rotation; arguments as for `rotate`."""
        square = cos**2 + sin**2  # of the attention factor
        return self.rotate(key, cos / square, -sin / square)


def _differs(keys: Tensor, others: Tensor) -> Tensor:
    """Return which dimensions differ for any token, ``(head_dim,)``."""
    return (keys != others).flatten(0, 2).any(dim=0)
