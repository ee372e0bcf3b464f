"""``longrope generate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from longrope.cli import options
from longrope.errors import LongRopeError

Factors = Annotated[
    str | None,
    typer.Option("--factors", help="Run folder or factors file; not needed for a checkpoint of longrope export."),
]
File = Annotated[
    Path | None, typer.Option(help="Text file to put before the prompt; its end is cut if it does not fit.")
]
New = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Largest number of tokens to generate.")]
Policy = Annotated[
    str | None,
    typer.Option(
        help="When to use the short factors: pin, switch or static (default: pin; static if MODEL has one set)."
    ),
]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; above 0, tokens are sampled.")]
SamplingSeed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed for sampling.")]


def run(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="Text to continue; with --file, the question.")] = "",
    factors: Factors = None,
    file: File = None,
    new: New = 256,
    policy: Policy = None,
    temperature: Temperature = 0.0,
    seed: SamplingSeed = 0,
    original_length: options.OriginalLength = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Try an extended model: continue a prompt or a long file beyond L0."""
    if not prompt and file is None:
        raise LongRopeError(f"prompt is empty, and {model!r} is the model. Give MODEL and PROMPT, or --file.")

    import torch

    from longrope.cli import chat_session
    from longrope.cli.chat_cache import ChatCache
    from longrope.cli.chat_stream import Stream

    text, decided = chat_session.read_file(file), options.decided_length(original_length)
    chat_model = chat_session.open_chat_model(
        model, factors, policy, original_length=decided, dtype=dtype, device=device
    )
    torch.manual_seed(seed)
    room = chat_model.extension.length - new
    if text:
        text = chat_model.cut(text, room, lambda cut: chat_model.encode([(chat_session.join_prompt(cut, prompt), "")]))
    ids = chat_model.encode([(chat_session.join_prompt(text, prompt), "")])
    rope = chat_model.extension.rope
    chat_session.note(
        f"{len(ids):,} token{'' if len(ids) == 1 else 's'}, at most {new:,} new: "
        f"{chat_model.factor_sets(ids, new)} factors "
        f"(policy {chat_model.policy}, L0 = {rope.original_length:,}, L = {chat_model.extension.length:,})"
    )
    stream = Stream(chat_model.tokenizer, quiet=as_json)
    ChatCache(chat_model).answer(ids, new=new, temperature=temperature, stream=stream)
    record = {
        "text": chat_model.tokenizer.decode(stream.tokens, skip_special_tokens=True),
        "tokens": len(stream.tokens),
        "prompt_tokens": len(ids),
        "factors": chat_model.factor_sets(ids, new, len(stream.tokens)),
        "policy": chat_model.policy,
        "seconds": stream.times[-1],
        "first_token_seconds": stream.times[0],
        "tokens_per_second": stream.rate,
    }
    options.tell(record, as_json=as_json, text=lambda: chat_session.note(stream.speed()))
