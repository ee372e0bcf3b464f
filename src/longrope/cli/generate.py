"""``longrope generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options
from longrope.errors import LongRopeError

Factors = Annotated[
    str | None,
    typer.Option("--factors", help="Run folder, or a factors file; not for a checkpoint of longrope export."),
]
File = Annotated[Path | None, typer.Option(help="Text file that goes before the prompt; cut to what fits.")]
New = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to generate at most.")]
Policy = Annotated[str, typer.Option(help="pin, switch or static: when the short factors are used.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; above, it is drawn.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of what is drawn.")]


def run(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="What to go on from; the question, with --file.")] = "",
    factors: Factors = None,
    file: File = None,
    new: New = 256,
    policy: Policy = "pin",
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Try an extended model: go on from a prompt or a long file, past L0."""
    if not prompt and file is None:
        raise LongRopeError("prompt is empty; give one, or --file")

    import torch

    from longrope.cli import chat_session
    from longrope.cli.chat_cache import ChatCache
    from longrope.cli.chat_stream import Stream

    text = chat_session.read_file(file)
    speaker = chat_session.open_speaker(model, factors, policy, dtype, device)
    torch.manual_seed(seed)
    room = speaker.extension.length - new
    if text:
        text = speaker.cut(text, room, lambda cut: speaker.encode([(chat_session.before(cut, prompt), "")]))
    ids = speaker.encode([(chat_session.before(text, prompt), "")])
    rope = speaker.extension.rope
    chat_session.note(
        f"{len(ids):,} tokens, at most {new:,} new: {speaker.sets(ids, new)} factors (policy {speaker.policy}, "
        f"L0 = {rope.original_length:,}, L = {speaker.extension.length:,})"
    )
    stream = Stream(speaker.tokenizer, quiet=as_json)
    ChatCache(speaker).answer(ids, new=new, temperature=temperature, stream=stream)
    record = {
        "text": speaker.tokenizer.decode(stream.tokens, skip_special_tokens=True),
        "tokens": len(stream.tokens),
        "prompt_tokens": len(ids),
        "factors": speaker.sets(ids, new, len(stream.tokens)),
        "policy": speaker.policy,
        "seconds": stream.times[-1],
        "first_token_seconds": stream.times[0],
        "tokens_per_second": stream.rate,
    }
    options.tell(record, as_json=as_json, text=lambda: chat_session.note(stream.speed()))
