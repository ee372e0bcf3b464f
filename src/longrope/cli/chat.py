"""``longrope chat``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from longrope.cli import generate, options
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from longrope.cli.chat_cache import ChatCache
    from longrope.cli.chat_session import Turn

TURNS_SHARE = 1 / 8  # share of L that a file leaves free for turns
HELP = "/reset starts a new chat (about the same file), /exit or the end of the input ends it, Ctrl-C stops an answer"


def run(
    model: options.Model,
    factors: generate.Factors = None,
    file: generate.File = None,
    new: generate.New = 256,
    policy: generate.Policy = None,
    temperature: generate.Temperature = 0.0,
    seed: generate.SamplingSeed = 0,
    original_length: options.OriginalLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Chat with an extended model, also about a long file; every line of the input is a turn."""
    import torch

    from longrope.cli import chat_session
    from longrope.cli.chat_cache import ChatCache

    text, decided = chat_session.read_file(file), options.decided_length(original_length)
    chat_model = chat_session.open_chat_model(
        model, factors, policy, original_length=decided, dtype=dtype, device=device
    )
    torch.manual_seed(seed)
    length = chat_model.extension.length
    chat_session.note(
        f"L0 = {chat_model.extension.rope.original_length:,}, L = {length:,}, policy {chat_model.policy}; {HELP}"
    )
    if text:
        room = length - new - int(length * TURNS_SHARE)
        text = chat_model.cut(text, room, lambda cut: chat_model.encode([(cut, "")]))
    chat_cache, turns = ChatCache(chat_model), []
    while (message := read_line()) is not None:
        if message == "/reset":
            turns = []
        elif message:
            message = message if turns else chat_session.join_prompt(text, message)
            turns = take_turn(chat_cache, turns, message, new=new, temperature=temperature)


def read_line() -> str | None:
    """Read the next line without surrounding blanks; return None at the end."""
    try:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        print(f"\n({HELP})", file=sys.stderr)
        return ""
    return None if not line or line.strip() == "/exit" else line.strip()


def take_turn(chat_cache: ChatCache, turns: list[Turn], message: str, *, new: int, temperature: float) -> list[Turn]:
    """Let the model answer and return the turns with this one, or without it if it does not fit."""
    from longrope.cli import chat_session
    from longrope.cli.chat_stream import Stream

    chat_model = chat_cache.chat_model
    ids, stream = chat_model.encode([*turns, (message, "")]), Stream(chat_model.tokenizer)
    try:
        chat_cache.answer(ids, new=new, temperature=temperature, stream=stream)
    except LongRopeError as error:
        chat_session.note(f"error: {error} (or /reset)")
        return turns
    except KeyboardInterrupt:
        stream.end()
        chat_session.note("(stopped)")
    chat_session.note(
        f"[{len(ids):,} tokens, {chat_model.factor_sets(ids, new, len(stream.tokens))} factors; {stream.speed()}]"
    )
    return [*turns, (message, str(chat_model.tokenizer.decode(stream.tokens, skip_special_tokens=True)))]
