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
    {"logprobs": True, "top_logprobs": TOP},  # mlx-lm's
    {},
)
TokenName = int | str  # the id of a token, or its text where a server gives no ids


@dataclass(frozen=True)
class Completion:
    """A server's answer to one prompt.

    Args:
        text: Generated text.
        prompt_tokens: Number of tokens that the server read; None if it does not say.
        top: Log-probabilities in nats of the likeliest tokens by id or text, for each generated token; empty if the
            server gives none.
    """

    text: str
    prompt_tokens: int | None
    top: tuple[Mapping[TokenName, float], ...] = ()


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
        top = tuple(_top_logprobs(choice.get("logprobs") or {}))
        return Completion(str(choice["text"]), count if isinstance(count, int) else None, top)
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


def _top_logprobs(logprobs: Mapping[str, Any]) -> list[dict[TokenName, float]]:
    """Return the alternatives of each token, from either form: OpenAI's dicts by text, or lists of objects with ids."""
    if "content" in logprobs:
        rows = [row.get("top_logprobs") or [] for row in logprobs["content"] or []]
        named = [[(_name(token), token["logprob"]) for token in row] for row in rows]
    else:
        named = [[(_parsed(text), value) for text, value in row.items()] for row in logprobs.get("top_logprobs") or []]
    top = [{name: float(value) for name, value in row if value is not None} for row in named]
    return top if all(top) else []


def _name(token: Mapping[str, Any]) -> TokenName:
    return token["id"] if isinstance(token.get("id"), int) else _parsed(token["token"])


def _parsed(text: str) -> TokenName:
    return int(text.removeprefix(ID_MARK)) if text.startswith(ID_MARK) else text
