"""``longrope chat``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from longrope.cli import generate, options
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from longrope.cli.chat_cache import ChatCache
    from longrope.cli.chat_session import Turn

TURNS = 1 / 8  # of L that a file leaves free for turns
HELP = "/reset begins anew (a file is kept), /exit or the end of the input ends, Ctrl-C stops an answer"


def run(
    model: options.Model,
    factors: generate.Factors = None,
    file: generate.File = None,
    new: generate.New = 256,
    policy: generate.Policy = "pin",
    temperature: generate.Temperature = 0.0,
    seed: generate.Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Talk with an extended model, about a long file perhaps: every line of the input is a turn."""
    import torch

    from longrope.cli import chat_session
    from longrope.cli.chat_cache import ChatCache

    text = chat_session.read_file(file)
    speaker = chat_session.open_speaker(model, factors, policy, dtype, device)
    torch.manual_seed(seed)
    length = speaker.extension.length
    chat_session.note(
        f"L0 = {speaker.extension.rope.original_length:,}, L = {length:,}, policy {speaker.policy}; {HELP}"
    )
    if text:
        room = length - new - int(length * TURNS)
        text = speaker.cut(text, room, lambda cut: speaker.encode([(cut, "")]))
    memory, turns = ChatCache(speaker), []
    while (said := read_line()) is not None:
        if said == "/reset":
            turns = []
        elif said:
            said = said if turns else chat_session.before(text, said)
            turns = take_turn(memory, turns, said, new=new, temperature=temperature)


def read_line() -> str | None:
    """The next line, without blanks around it; None for the end."""
    try:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except KeyboardInterrupt:
        print(f"\n({HELP})", file=sys.stderr)
        return ""
    return None if not line or line.strip() == "/exit" else line.strip()


def take_turn(memory: ChatCache, turns: list[Turn], said: str, *, new: int, temperature: float) -> list[Turn]:
    """Let the model answer; the turns with this one, or without it if it does not fit."""
    from longrope.cli import chat_session
    from longrope.cli.chat_stream import Stream

    speaker = memory.speaker
    ids, stream = speaker.encode([*turns, (said, "")]), Stream(speaker.tokenizer)
    try:
        memory.answer(ids, new=new, temperature=temperature, stream=stream)
    except LongRopeError as error:
        chat_session.note(f"error: {error} (or /reset)")
        return turns
    except KeyboardInterrupt:
        stream.end()
        chat_session.note("(stopped)")
    chat_session.note(f"[{len(ids):,} tokens, {speaker.sets(ids, new, len(stream.tokens))} factors; {stream.speed()}]")
    return [*turns, (said, str(speaker.tokenizer.decode(stream.tokens, skip_special_tokens=True)))]
