"""Checks of numbers and token ids that several types share."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING, Any

from longrope.errors import LongRopeError

if TYPE_CHECKING:
    import numpy as np

OTHER_TOKENIZER = (
    "Give the tokenizer that belongs to the model, or one without added tokens; "
    "or resize_token_embeddings(len(tokenizer)) and train the new rows."
)
LARGEST = 2**53  # above it, floats cannot represent every integer


def to_python(value: Any) -> Any:
    """Return the Python number or list that an array or a tensor holds; other values as they are.

    >>> import numpy as np
    >>> to_python(np.array([1.0, 2.5])), to_python(np.float32(0.5)), to_python("su")
    ([1.0, 2.5], 0.5, 'su')
    """
    return value.tolist() if hasattr(value, "tolist") else value


def as_list(values: Any) -> list[Any]:
    """Return the values of a list, an array or a tensor; one value alone is a list of one, and None an empty list.

    >>> import numpy as np
    >>> as_list(64), as_list("16k"), as_list(np.array([1, 2])), as_list(None)
    ([64], ['16k'], [1, 2], [])
    """
    values = to_python(values)
    if isinstance(values, (str, Mapping)) or not isinstance(values, Iterable):
        return [] if values is None else [values]
    return list(values)


def torch_name(value: Any) -> str:
    """Return the name of a torch dtype or device, which may be a name already: ``bfloat16``, ``cuda:0``."""
    return str(value).removeprefix("torch.")


def positive(name: str, value: Any) -> float:
    """Return a number as a float if it is finite and above 0.

    Args:
        name: Field name, for the error message.
        value: A number, also as a 0-d array or tensor.

    Raises:
        LongRopeError: The value is something else.
    """
    number = to_python(value)
    numeric = isinstance(number, Real) and not isinstance(number, bool)
    try:
        number = float(number) if numeric else 0.0
    except OverflowError:
        number = math.inf
    if not sys.float_info.min <= number < math.inf:  # below, 1 / number is infinite
        raise LongRopeError(f"{name} = {value!r} must be a finite number above 0")
    return number


def positives(name: str, values: Any) -> tuple[float, ...]:
    """Return the numbers of a list, an array or a tensor as floats if each is finite and above 0.

    Args:
        name: Field name, for the error message.
        values: The numbers.

    Raises:
        LongRopeError: The value is not a list, or a number is something else.
    """
    numbers = to_python(values)
    if isinstance(numbers, str) or not isinstance(numbers, Iterable):
        raise LongRopeError(f"{name} = {values!r} must be a list of numbers")
    return tuple(positive(f"{name}[{i}]", number) for i, number in enumerate(numbers))


def whole(name: str, value: Any, least: int) -> int:
    """Return an integer if it is at least ``least``.

    Args:
        name: Field name, for the error message.
        value: An integer, also as a whole float (1e6), a 0-d array or a tensor.
        least: Smallest integer that is allowed.

    Raises:
        LongRopeError: The value is something else, or above 2^53.
    """
    number = to_python(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= LARGEST:
        most = ", 2^53 at most" if isinstance(number, int) and number > LARGEST else ""
        raise LongRopeError(f"{name} = {value!r} must be a whole number, {least} or more{most}")
    return number


def check_tokenizer(tokenizer: Any) -> None:
    """Raise if a value in the place of a tokenizer is something else, such as its name or a dict of candidates.

    Raises:
        LongRopeError: The value cannot be called with a text.
    """
    if not callable(tokenizer):
        raise LongRopeError(
            f"tokenizer = a {type(tokenizer).__name__}: not a tokenizer. Give the second value of longrope.load(NAME)."
        )


def check_vocabulary(
    tokens: Iterable[np.ndarray], vocabulary: int, tokenizer: Any = None, *, field: str = "data"
) -> None:
    """Raise if a token id has no row in a model's embedding, as ids of tokens that were added to the tokenizer only.

    Args:
        tokens: Arrays of token ids, 0 or more.
        vocabulary: Number of rows of the model's embedding.
        tokenizer: Tokenizer that made the ids, for the message.
        field: Name of the tokens' source in the message.

    Raises:
        LongRopeError: An id is ``vocabulary`` or more.
    """
    largest = max((int(ids.max()) for ids in tokens if ids.size), default=0)
    if largest >= vocabulary:
        text = (
            "" if tokenizer is None else f" ({tokenizer.convert_ids_to_tokens(largest)!r}) of {len(tokenizer):,} tokens"
        )
        raise LongRopeError(
            f"{field}: the tokenizer makes token {largest}{text}, and the model's embedding ends at {vocabulary - 1} "
            f"(vocab_size = {vocabulary:,}). {OTHER_TOKENIZER}"
        )
