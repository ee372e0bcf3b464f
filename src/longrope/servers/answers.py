"""Answers of a server to the prompts of a probe, in the token ids of the checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.servers.client import RefusedRequestError, Server
from longrope.servers.completion import Completion, complete
from longrope.servers.probe_prompts import STEPS, ProbePrompt
from longrope.servers.token_texts import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answer:
    """A prompt as a server read it, and the tokens that it generated.

    Args:
        prompt: The prompt.
        tokens: Token ids that the server read.
        generated: Token ids that the server generated; empty if it refused or cut the prompt.
        top: Log-probabilities in nats of the likeliest tokens by id, for each generated token; empty without any.
        text: Generated text.
        refusal: The server's words, if it refused the prompt.
        read: Number of tokens that the server read, if it cut the prompt; None if it did not.
    """

    prompt: ProbePrompt
    tokens: tuple[int, ...]
    generated: tuple[int, ...] = ()
    top: tuple[Mapping[int, float], ...] = ()
    text: str = ""
    refusal: str = ""
    read: int | None = None


def ask(
    server: Server, prompts: Sequence[ProbePrompt], form: Mapping[str, Any], on_progress: Callable[[int, int], None]
) -> list[Completion | str]:
    """Return the server's completions, or its words where it refuses a prompt.

    Args:
        server: Server to ask.
        prompts: Prompts, by ascending length.
        form: Fields that request log-probabilities, one of `FORMS`.
        on_progress: Called with the number of prompts that are done, and of all.

    Raises:
        LongRopeError: The server fails, or refuses all prompts.
    """
    replies: list[Completion | str] = []
    for prompt in prompts:
        try:
            replies.append(complete(server, prompt.text, tokens=STEPS, form=form))
        except RefusedRequestError as error:
            if not replies:
                raise
            replies.append(error.reason)
        on_progress(len(replies), len(prompts))
    return replies


def difference_of_starts(
    prompts: Sequence[ProbePrompt], replies: Sequence[Completion | str], tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return how many beginning-of-text tokens the server reads more than the tokenizer writes: -1, 0 or 1.

    Args:
        prompts: Prompts, by ascending length.
        replies: What `ask` returned for them.
        tokenizer: Tokenizer of the checkpoint.

    Raises:
        LongRopeError: The server counts other tokens in the shortest prompts.
    """
    for prompt, reply in zip(prompts, replies, strict=True):
        if isinstance(reply, str) or reply.prompt_tokens is None:
            continue
        difference, bos = reply.prompt_tokens - len(prompt.tokens), tokenizer.bos_token_id
        if difference == 0 or (bos is not None and difference == (-1 if prompt.tokens[0] == bos else 1)):
            return difference
        raise LongRopeError(
            f"checkpoint: its tokenizer makes {len(prompt.tokens):,} tokens of a text, and the server reads "
            f"{reply.prompt_tokens:,}. Give the checkpoint that the server runs, with its tokenizer."
        )
    return 0


def read_answers(
    prompts: Sequence[ProbePrompt],
    replies: Sequence[Completion | str],
    tokenizer: PreTrainedTokenizerBase,
    starts: int,
) -> list[Answer]:
    """Return the server's replies as answers.

    Args:
        prompts: Prompts, by ascending length.
        replies: What `ask` returned for them.
        tokenizer: Tokenizer of the checkpoint.
        starts: What `difference_of_starts` returned.
    """
    texts, answers = TokenTexts(tokenizer), []
    start: list[Any] = [tokenizer.bos_token_id] if starts > 0 else []
    for prompt, reply in zip(prompts, replies, strict=True):
        tokens = (*start, *prompt.tokens) if starts >= 0 else prompt.tokens[1:]
        if isinstance(reply, str):
            answers.append(Answer(prompt, tokens, refusal=reply))
        elif reply.prompt_tokens not in (None, len(tokens)):
            answers.append(Answer(prompt, tokens, text=reply.text, read=reply.prompt_tokens))
        elif reply.top:
            answers.append(Answer(prompt, tokens, *_known_tokens(reply, texts), text=reply.text))
        else:
            generated = _generated_ids(tokenizer, prompt, reply.text)
            answers.append(Answer(prompt, tokens, generated, text=reply.text))
    return answers


def _known_tokens(reply: Completion, texts: TokenTexts) -> tuple[tuple[int, ...], tuple[dict[int, float], ...]]:
    """Return the likeliest ids up to the first whose text is unknown, and the log-probabilities of known alternatives.

    A server that is asked for temperature 0 has generated the likeliest ones.
    """
    generated, top = [], []
    for named in reply.top:
        values = {token: value for name, value in named.items() if (token := texts.find(name)) is not None}
        likeliest = texts.find(max(named, key=lambda name: named[name]))
        if likeliest is None:
            break
        generated.append(likeliest)
        top.append(values)
    return tuple(generated), tuple(top)


def _generated_ids(tokenizer: PreTrainedTokenizerBase, prompt: ProbePrompt, text: str) -> tuple[int, ...]:
    """Return the tokens of a generated text, as the tokenizer splits it after the prompt."""
    tokens = tuple(tokenizer(prompt.text + text)["input_ids"])
    size = len(prompt.tokens)
    if tokens[:size] == prompt.tokens:
        return tokens[size : size + STEPS]
    [tokens] = encode_within(tokenizer, [text])
    return tuple(map(int, tokens[:STEPS]))
