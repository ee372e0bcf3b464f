"""Stop a generation whose logits are not finite: the likeliest of them would be the first token, again and again."""

from __future__ import annotations

from torch import Tensor
from transformers import LogitsProcessor

from longrope.errors import LongRopeError, suspect


class FiniteLogits(LogitsProcessor):
    """A logits processor that changes nothing and refuses logits that are not finite.

    Args:
        dtype: Dtype of the model, for the message.
    """

    def __init__(self, dtype: object) -> None:
        self.dtype = str(dtype).removeprefix("torch.")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores ``(rows, vocab_size)``.

        Raises:
            LongRopeError: Scores are NaN or infinite; single tokens may be masked by minus infinity.
        """
        if not scores.amax(-1).isfinite().all():
            raise LongRopeError(f"logits after {input_ids.shape[1]} tokens are not finite. {suspect(self.dtype)}")
        return scores
