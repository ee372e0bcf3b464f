"""The attention layers of a model: which rotate, how far each sees, and whether factors can reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longrope.errors import LongRopeError


@dataclass(frozen=True)
class AttentionLayer:
    """One attention layer.

    Args:
        index: Number of the layer in the model.
        rotates: Whether its queries or keys depend on the rotary embedding.
        window: Number of tokens that a token sees, including itself; None if it sees all before it.
    """

    index: int
    rotates: bool
    window: int | None


@dataclass(frozen=True)
class LayerSurvey:
    """The attention layers of a model.

    Args:
        layers: Number of all layers.
        attention: Layers with attention that the survey reached.
        position_field: Field of the config that says which layers rotate, with its value.
        window_field: Field of the config that limits how far layers see, with its value.
    """

    layers: int
    attention: tuple[AttentionLayer, ...]
    position_field: str
    window_field: str

    @property
    def rotating(self) -> tuple[AttentionLayer, ...]:
        """Layers that rotate."""
        return tuple(layer for layer in self.attention if layer.rotates)

    @property
    def reach(self) -> int | None:
        """The most tokens that a rotating layer sees; None if one sees all, or if no layer is known to rotate."""
        windows = [layer.window for layer in self.rotating if layer.window is not None]
        return max(windows) if windows and len(windows) == len(self.rotating) else None

    def check(self) -> None:
        """Refuse a model without a rotating layer.

        Raises:
            LongRopeError: No layer rotates.
        """
        if self.attention and not self.rotating:
            raise LongRopeError(
                f"{self.position_field}: no attention layer of this model rotates, so rescale factors change nothing. "
                "longrope cannot extend it."
            )

    def warning(self, length: int) -> str | None:
        """Return why factors cannot extend the model to a length; None if they can, or if nothing is known."""
        if self.reach is None or self.reach >= length:
            return None
        layers = "every layer that rotates" if len(self.rotating) < self.layers else "every layer"
        text = (
            f"{self.window_field}: {layers} sees a sliding window of at most {self.reach:,} tokens, so rescale factors "
            f"cannot extend this model to {length:,} tokens."
        )
        full = any(not layer.rotates and layer.window is None for layer in self.attention)
        return f"{text} The full-attention layers do not rotate." if full else text

    def describe(self) -> str | None:
        """Return one sentence on the layers that differ from plain RoPE over all tokens; None if none does."""
        if not self.attention:
            return None
        windowed = [layer for layer in self.rotating if layer.window is not None]
        if len(self.rotating) == self.layers and not windowed:
            return None
        text = f"{len(self.rotating)} of {self.layers} layers rotate ({_numbers(self.rotating)})."
        if windowed:
            largest = max(layer.window or 0 for layer in windowed)
            text += f" {len(windowed)} of these see a sliding window of {largest:,} tokens ({_numbers(windowed)})."
        return text


def _numbers(layers: Sequence[AttentionLayer]) -> str:
    """Return the numbers of some layers, the first few if they are many."""
    if not layers:
        return "none"
    numbers = [str(layer.index) for layer in layers]
    return f"layers {', '.join(numbers[:6])}" + (f" … {numbers[-1]}" if len(numbers) > 6 else "")
