"""The model and the prompts that ``longrope generate`` and ``longrope chat`` share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from longrope.cli import options
from longrope.cost.memory_check import Placement, check_pass_memory
from longrope.errors import LongRopeError, unknown
from longrope.export.carried_factors import holds
from longrope.formats.checkpoint_file import find_file
from longrope.models.generation import POLICIES, factors_for, generating
from longrope.models.load_errors import BUILT_IN
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling, as_extension

Turn = tuple[str, str]  # the user's text and the model's answer, which is empty in the last turn


@dataclass(frozen=True)
class ChatModel:
    """A model with its extension.

    Args:
        model: Causal language model.
        tokenizer: Tokenizer of the model.
        extension: Short and long factors.
        policy: One of `longrope.models.generation.POLICIES`.
        exported: Whether the model's own config holds the factors.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    extension: Extension
    policy: str
    exported: bool

    def patched(self, factors: Scaling | None) -> AbstractContextManager[object]:
        """Return a block in which the forward pass uses the factors."""
        return patch(self.model, None if self.exported else factors)

    def generating(self) -> AbstractContextManager[object]:
        """Return a block in which ``generate`` follows the policy."""
        return nullcontext() if self.exported else generating(self.model, self.extension, self.policy)

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Encode a chat with the model's chat template, or join its texts if the model has none."""
        if self.tokenizer.chat_template is None:
            text = "\n".join(message + answer for message, answer in turns)
            return list(self.tokenizer(text, verbose=False)["input_ids"])
        roles = [(("user", message), ("assistant", answer)) for message, answer in turns]
        messages = [{"role": role, "content": text} for pair in roles for role, text in pair][:-1]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def cut(self, text: str, room: int, encode: Callable[[str], list[int]]) -> str:
        """Return the longest beginning of a text whose prompt has at most ``room`` tokens.

        Args:
            text: Text of the file.
            room: Largest number of tokens of the prompt.
            encode: Function from the text to the tokens of the prompt.
        """
        tokens = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        beginning, size = text, len(tokens)
        while (excess := len(encode(beginning)) - room) > 0:
            size -= excess
            if size <= 0:
                raise LongRopeError(
                    f"the extension's length = {self.extension.length} leaves no room for the file; shorten the "
                    "prompt, lower --max-new-tokens, or extend the model further"
                )
            beginning = str(self.tokenizer.decode(tokens[:size], clean_up_tokenization_spaces=False)).rstrip("\ufffd")
        if beginning is not text:
            note(f"the file has {len(tokens):,} tokens, of which the first {size:,} fit: the others are cut")
        return beginning

    def factor_sets(self, ids: list[int], new: int, generated: int | None = None) -> str:
        """Return the sets of factors that generation uses: ``long``, ``short``, or ``short, then long``.

        Args:
            ids: Tokens of the prompt.
            new: Largest number of tokens to generate.
            generated: Number of generated tokens (default: ``new``).
        """
        counts = (0, new if generated is None else generated)
        scalings = [factors_for(self.extension, self.policy, len(ids) + count, new - count) for count in counts]
        names = ["long" if scaling == self.extension.long else "short" for scaling in scalings]
        return ", then ".join(dict.fromkeys(names))


def note(text: str) -> None:
    """Print a note to standard error, apart from the generated text."""
    print(text, file=sys.stderr, flush=True)


def read_file(path: Path | None) -> str:
    """Read the text of a file; return an empty string if no file is given.

    Raises:
        LongRopeError: The file cannot be read or holds no text.
    """
    try:
        text = "" if path is None else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LongRopeError(f"file = {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path is not None and not text.strip():
        raise LongRopeError(f"file = {path} is empty")
    return text


def join_prompt(file: str, question: str) -> str:
    """Join a file's text and the question about it."""
    return f"{file.rstrip()}\n\n{question}" if file and question else file or question


def open_chat_model(
    name: str, factors: str | None, policy: str | None, *, original_length: int | None, dtype: str, device: str
) -> ChatModel:
    """Load a model and its extension.

    Args:
        name: Name of the model, as for `longrope.models.load.load`.
        factors: Factors file or run folder (default: the model folder's ``extension.json``).
        policy: One of `longrope.models.generation.POLICIES`; None is ``pin``; of one set, ``static``.
        original_length: L0 in tokens, as for `longrope.models.load.load`.
        dtype: Key of `longrope.models.load.DTYPES`.
        device: Torch device, or ``auto``.

    Raises:
        LongRopeError: The model or its factors are missing, or they do not belong together.
    """
    if policy not in (None, *POLICIES):
        raise unknown("policy", policy, POLICIES)
    config = options.read_config(name, original_length)
    source = factors or _own_factors(name, Rope.of(config))
    if factors is None and original_length is not None:
        raise LongRopeError(f"original_length = {original_length}: {name} is extended already. Leave it out.")
    extension = options.read_factors(source)
    options.check_weights(name, source)
    exported = None
    if factors is None and isinstance(extension, Extension) and holds(config.to_dict(), extension):
        exported = extension
    if exported is not None and exported.short != exported.long:
        raise LongRopeError(
            f"{name} holds two sets of factors, which transformers mixes in its cache; give the model that it was "
            f"made from, and --factors {source}"
        )
    if exported is not None and policy not in (None, "static"):
        raise LongRopeError(f"policy = {policy!r}: {name} has one set of factors, for every length. Leave it out.")
    device = options.choose_device(device)
    length = extension.length or Rope.of(config).original_length

    def check_memory(dtype: str) -> None:
        check_pass_memory(config, length, Placement(dtype, device), kind="generation")

    dtype = options.choose_dtype(dtype, config, device, check_memory)
    model, tokenizer = options.open_model(name, dtype, device, original_length)
    extension = exported or as_extension(extension, Rope.of(model))
    policy = "static" if exported else policy or "pin"
    chat_model = ChatModel(model, tokenizer, extension, policy, exported is not None)
    with chat_model.generating():  # refuses another model's extension
        return chat_model


def _own_factors(name: str, rope: Rope) -> str:
    """Return the folder of the ``extension.json`` that longrope wrote beside a model.

    Args:
        name: Name of the model, which may be a hub id.
        rope: Rope of the model.

    Raises:
        LongRopeError: There is no such file.
    """
    path = Path(name) / "extension.json"
    if not Path(name).exists() and name not in BUILT_IN:
        path = find_file(name, path.name) or path
    if path.is_file():
        return str(path.parent)
    if rope.factors:
        raise LongRopeError(
            f"--factors is missing: {name} carries a rope scaling for {rope.original_length:,} tokens, which "
            "transformers runs by itself. For longer texts give factors that were made for this checkpoint."
        )
    raise LongRopeError(
        "--factors is missing: a run folder or a factors file; for one without a search: "
        f"longrope scale {name} --scheme heuristic --length 32k -o factors.json"
    )
