"""What ``longrope generate`` and ``longrope chat`` share: a model that speaks, and the cache of what it has read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.cache_utils import DynamicLayer

from longrope.cli import options
from longrope.cli.progress import bar
from longrope.errors import LongRopeError
from longrope.models.generation import POLICIES, factors_for, fill, generating
from longrope.models.load import load_config
from longrope.models.memory import explain_out_of_memory
from longrope.models.patch import patch
from longrope.rope import Extension, Rope, Scaling

CHUNK = 1024  # tokens of a prompt that go through the model at once
Turn = tuple[str, str]  # what was said to the model, and what it answered; nothing yet in the last one


@dataclass(frozen=True)
class Speaker:
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

    def sets(self, ids: list[int], new: int) -> str:
        """Which factors are used: long, short, or ``short, then long``."""
        ends = [factors_for(self.extension, self.policy, len(ids) + more, new - more) for more in (0, new)]
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


def open_speaker(name: str, factors: str | None, policy: str, dtype: str, device: str) -> Speaker:
    """Load a model and its extension.

    Raises:
        LongRopeError: if one of them is missing, or they do not belong together.
    """
    if policy not in POLICIES:
        raise LongRopeError(f"policy = {policy!r} is unknown; choose one of {', '.join(POLICIES)}")
    within = Path(name) / "extension.json"
    if factors is None and not within.is_file():
        raise LongRopeError(
            f"--extension is missing: a run folder or a factors file; for one without a search: "
            f"longrope scale {name} --scheme heuristic --length 32k -o factors.json"
        )
    extension = options.read_factors(factors or str(within))
    parameters = load_config(name).get_text_config().rope_parameters if factors is None else None
    exported = (parameters or {}).get("rope_type") == "longrope"
    if exported and isinstance(extension, Extension) and extension.short != extension.long:
        raise LongRopeError(
            f"{name} holds two sets of factors, which transformers mixes in its cache; give the model that it was "
            f"made from, and --extension {name}"
        )
    model, tokenizer = options.open_model(name, dtype, device)
    if not isinstance(extension, Extension):
        extension = Extension.of(Rope.of(model), extension)
    speaker = Speaker(model, tokenizer, extension, "static" if exported else policy, exported)
    with speaker.generating():  # refuses another model's extension
        return speaker


class Stream(TextStreamer):
    """Writes what is generated to standard output as it comes, and keeps its tokens."""

    def __init__(self, tokenizer: Any, *, quiet: bool = False) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.quiet, self.tokens, self.begin, self.times = quiet, [], perf_counter(), []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then a token at a time."""
        if not self.next_tokens_are_prompt:
            self.tokens += value.tolist()
            self.times.append(perf_counter() - self.begin)
        super().put(value)

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first one; None if there are none."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else None

    def speed(self) -> str:
        """How many tokens there are, and how fast they came."""
        first = f": the first after {self.times[0]:.1f} s" if self.times else ""
        rate = f", then {self.rate:.1f} tokens/s" if self.rate else ""
        return f"{len(self.tokens):,} new tokens in {perf_counter() - self.begin:.1f} s{first}{rate}"

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Take whole words."""
        if not self.quiet:
            print(text, flush=True, end="\n" if stream_end else "")


@dataclass
class Memory:
    """What a speaker has read: tokens, their cache, and the factors that it was made with."""

    speaker: Speaker
    ids: list[int] = field(default_factory=list)
    cache: DynamicCache = field(default_factory=DynamicCache)
    factors: Scaling | None = None

    def keep(self, size: int) -> None:
        """Forget all but the first tokens, or everything where a layer has a sliding window that has moved on."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, DynamicLayer)]
        sliding = any(layer.is_sliding and layer.get_seq_length() != size for layer in layers)
        if size == 0 or sliding:
            self.ids, self.cache = [], DynamicCache(config=self.speaker.model.config)
            return
        for layer in layers:  # crop() takes as many from every layer, but an interrupt leaves different lengths
            if not layer.is_sliding and layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[..., :size, :], layer.values[..., :size, :]
        self.ids = self.ids[:size]

    def answer(self, ids: list[int], *, new: int, temperature: float, stream: Stream) -> None:
        """Go on from some tokens; what of them the memory holds is not read again.

        Raises:
            LongRopeError: if they and ``new`` more are longer than the extension, or memory runs out.
        """
        model, extension, policy = self.speaker.model, self.speaker.extension, self.speaker.policy
        if len(ids) + new > extension.length:
            raise LongRopeError(
                f"{len(ids)} tokens of prompt and --max-new-tokens {new} make {len(ids) + new}, above the extension's "
                f"length = {extension.length}; shorten the prompt, lower --max-new-tokens, or extend the model further"
            )
        factors = factors_for(extension, policy, len(ids), new)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(self.ids, ids[:-1], strict=False))
        self.keep(len(list(same)) if factors == self.factors else 0)
        self.factors = factors
        with explain_out_of_memory(len(ids) + new, f"on {model.device}", "give a shorter text, or --dtype bfloat16"):
            self._read(ids[:-1])
            self._speak(ids, new, temperature, stream)

    def _read(self, ids: list[int]) -> None:
        """Fill the cache a chunk at a time; an interrupt loses the last chunk alone."""
        model, quiet = self.speaker.model, not sys.stderr.isatty() or len(ids) - len(self.ids) <= CHUNK
        tokens = torch.tensor([ids], dtype=torch.long, device=model.device)
        with bar("reading", len(ids), quiet=quiet) as update, self.speaker.patched(self.factors):
            for size in fill(model, tokens, self.cache, chunk=CHUNK):
                self.ids = ids[:size]
                update(size, f"{size:,} tokens")

    def _speak(self, ids: list[int], new: int, temperature: float, stream: Stream) -> None:
        model: Any = self.speaker.model
        options: dict[str, Any] = (
            {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        )
        tokens = torch.tensor([ids], device=model.device)
        options |= {"attention_mask": torch.ones_like(tokens), "past_key_values": self.cache, "streamer": stream}
        try:
            with self.speaker.generating():
                model.generate(tokens, max_new_tokens=new, **options)
        finally:  # also when interrupted: what was streamed has been read but for the last token
            self.ids = (ids + stream.tokens)[:-1]
            reached = len(ids) + len(stream.tokens)
            if self.speaker.policy == "switch" and self.speaker.extension.at(reached) != self.factors:
                self.factors = None  # the cache is the other set's, or half of it: to be read again
