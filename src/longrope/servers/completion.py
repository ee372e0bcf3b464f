"""Completions of a server: the tokens that it generates, and the log-probabilities that it gives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from longrope.errors import LongRopeError
from longrope.servers.client import RefusedRequestError, Server

TOP = 5  # alternatives of each token; OpenAI's protocol has no more
ID_MARK = "token_id:"
FORMS: tuple[dict[str, Any], ...] = (
    {"logprobs": TOP, "return_tokens_as_token_ids": True},  # vLLM's: ids instead of texts
    {"logprobs": TOP},
    {},
)
TokenName = int | str  # the id of a token, or its text where a server gives no ids


@dataclass(frozen=True)
class GeneratedToken:
    """A token that a server generated.

    Args:
        name: Id or text of the token.
        top: Log-probabilities in nats of the likeliest tokens by id or text; empty if the server gives none.
    """

    name: TokenName
    top: Mapping[TokenName, float]


@dataclass(frozen=True)
class Completion:
    """A server's answer to one prompt.

    Args:
        text: Generated text.
        prompt_tokens: Number of tokens that the server read; None if it does not say.
        tokens: Generated tokens with their log-probabilities; empty if the server gives none.
    """

    text: str
    prompt_tokens: int | None
    tokens: tuple[GeneratedToken, ...] = ()


def complete(
    server: Server, prompt: str | Sequence[int], *, tokens: int, form: Mapping[str, Any] | None = None
) -> Completion:
    """Return the greedy continuation of a prompt.

    Args:
        server: Server to ask.
        prompt: Text, or token ids.
        tokens: Most tokens to generate.
        form: Fields that request log-probabilities, one of `FORMS`; None requests none.

    Raises:
        RefusedRequestError: The server refuses the request.
        LongRopeError: The server cannot be reached, or its answer is not a completion.
    """
    body = {"model": server.model, "prompt": prompt if isinstance(prompt, str) else list(prompt)}
    body |= {"max_tokens": tokens, "temperature": 0, "stream": False, **(form or {})}
    answer = server.send("/completions", body)
    try:
        choice = answer["choices"][0]
        count = (answer.get("usage") or {}).get("prompt_tokens")
        generated = tuple(_generated_tokens(choice.get("logprobs") or {}))
        return Completion(str(choice["text"]), count if isinstance(count, int) else None, generated)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise LongRopeError(
            f"server = {server.url}: /completions answered with an object that is not a completion ({error!r}). "
            "Give the address of a server that speaks OpenAI's protocol."
        ) from None


def choose_form(
    server: Server, prompt: str, forms: Sequence[Mapping[str, Any]] = FORMS
) -> tuple[Mapping[str, Any], Completion]:
    """Return the first form that a server takes, and its completion of a short prompt.

    Args:
        server: Server to ask.
        prompt: A short text.
        forms: Fields that request log-probabilities, in the order in which they are tried.

    Raises:
        LongRopeError: The server refuses every form, or fails otherwise.
    """
    first, *others = forms
    try:
        return first, complete(server, prompt, tokens=1, form=first)
    except RefusedRequestError:
        if not others:
            raise
        return choose_form(server, prompt, others)


def _generated_tokens(logprobs: Mapping[str, Any]) -> list[GeneratedToken]:
    """Return tokens in either form: lists of texts, or llama.cpp's list of objects with ids."""
    if "content" in logprobs:
        rows = [(_name(row), row.get("top_logprobs") or []) for row in logprobs["content"] or []]
        return [GeneratedToken(name, _top((_name(row), row["logprob"]) for row in top)) for name, top in rows]
    texts, tops = logprobs.get("tokens") or [], logprobs.get("top_logprobs") or []
    return [
        GeneratedToken(_parsed(text), _top((_parsed(name), value) for name, value in (top or {}).items()))
        for text, top in zip(texts, tops, strict=True)
    ]


def _name(row: Mapping[str, Any]) -> TokenName:
    return row["id"] if isinstance(row.get("id"), int) else _parsed(row["token"])


def _parsed(text: str) -> TokenName:
    return int(text.removeprefix(ID_MARK)) if text.startswith(ID_MARK) else text


def _top(pairs: Any) -> dict[TokenName, float]:
    return {name: float(value) for name, value in pairs if value is not None}
