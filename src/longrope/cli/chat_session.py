"""What ``longrope generate`` and ``longrope chat`` share: a model that speaks, and the texts that it is given."""

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
from longrope.models.generation import POLICIES, factors_for, generating
from longrope.models.load import load_config
from longrope.models.patch import patch
from longrope.rope import Rope, full_attention_fields
from longrope.scaling import Extension, Scaling, as_extension

Turn = tuple[str, str]  # what was said to the model, and what it answered; nothing yet in the last one


@dataclass(frozen=True)
class ChatModel:
    """A model with an extension; ``exported`` if the factors are in its own config."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    extension: Extension
    policy: str
    exported: bool

    def patched(self, factors: Scaling | None) -> AbstractContextManager[object]:
        """Its forward pass under some factors."""
        return patch(self.model, None if self.exported else factors)

    def generating(self) -> AbstractContextManager[object]:
        """Its ``generate`` under its policy."""
        return nullcontext() if self.exported else generating(self.model, self.extension, self.policy)

    def encode(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens of a conversation: by the chat template if there is one, else its texts one after the other."""
        if self.tokenizer.chat_template is None:
            text = "\n".join(said + answered for said, answered in turns)
            return list(self.tokenizer(text, verbose=False)["input_ids"])
        roles = [(("user", said), ("assistant", answered)) for said, answered in turns]
        messages = [{"role": role, "content": text} for pair in roles for role, text in pair][:-1]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def cut(self, text: str, room: int, encode: Callable[[str], list[int]]) -> str:
        """As much of the beginning of a text as leaves at most ``room`` tokens of what ``encode`` makes of it."""
        tokens = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        kept, size = text, len(tokens)
        while (over := len(encode(kept)) - room) > 0:
            size -= over
            if size <= 0:
                raise LongRopeError(
                    f"the extension's length = {self.extension.length} leaves no room for the file; shorten the "
                    "prompt, lower --max-new-tokens, or extend the model further"
                )
            kept = str(self.tokenizer.decode(tokens[:size], clean_up_tokenization_spaces=False)).rstrip("\ufffd")
        if kept is not text:
            note(f"the file has {len(tokens):,} tokens, of which the first {size:,} fit: the rest is left out")
        return kept

    def sets(self, ids: list[int], new: int, made: int | None = None) -> str:
        """Which factors are used: long, short, or ``short, then long``; of ``new`` tokens, ``made`` came (or all)."""
        made = new if made is None else made
        ends = [factors_for(self.extension, self.policy, len(ids) + more, new - more) for more in (0, made)]
        return ", then ".join(dict.fromkeys("long" if end == self.extension.long else "short" for end in ends))


def note(text: str) -> None:
    """Say something beside the generated text."""
    print(text, file=sys.stderr, flush=True)


def read_file(path: Path | None) -> str:
    """The text of a file; nothing if there is none.

    Raises:
        LongRopeError: if it cannot be read or holds no text.
    """
    try:
        text = "" if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LongRopeError(f"file = {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path is not None and not text.strip():
        raise LongRopeError(f"file = {path} is empty")
    return text


def before(file: str, said: str) -> str:
    """A file's text before what is said about it."""
    return f"{file.rstrip()}\n\n{said}" if file and said else file or said


def open_speaker(name: str, factors: str | None, policy: str, dtype: str, device: str) -> ChatModel:
    """Load a model and its extension.

    Raises:
        LongRopeError: if one of them is missing, or they do not belong together.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    within = Path(name) / "extension.json"
    if factors is None and not within.is_file():
        raise LongRopeError(
            f"--factors is missing: a run folder or a factors file; for one without a search: "
            f"longrope scale {name} --scheme heuristic --length 32k -o factors.json"
        )
    extension = options.read_factors(factors or str(within))
    parameters = load_config(name).get_text_config().rope_parameters if factors is None else None
    exported = full_attention_fields(parameters).get("rope_type") == "longrope"
    if exported and isinstance(extension, Extension) and extension.short != extension.long:
        raise LongRopeError(
            f"{name} holds two sets of factors, which transformers mixes in its cache; give the model that it was "
            f"made from, and --factors {name}"
        )
    config, device = load_config(name), options.choose_device(device)
    length = extension.length or Rope.of(config).original_length

    def check_memory(dtype: str) -> None:
        check_pass_memory(config, length, Placement(dtype, device), kind="generation")

    dtype = options.choose_dtype(dtype, name, device, check_memory)
    model, tokenizer = options.open_model(name, dtype, device)
    extension = as_extension(extension, Rope.of(model))
    speaker = ChatModel(model, tokenizer, extension, "static" if exported else policy, exported)
    with speaker.generating():  # refuses another model's extension
        return speaker
