"""Requests to a server that speaks OpenAI's protocol, over Python's own HTTP client."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

from longrope.errors import LongRopeError, did_you_mean
from longrope.servers.address import KEYS, base_address, key_of_environment

BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers after which the same request may succeed
WAIT = 0.5  # seconds before the first retry; the pause doubles from one retry to the next


class RefusedRequestError(LongRopeError):
    """An answer that refuses this request, while the server may take others.

    Args:
        message: The error message.
        reason: The server's own words.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Server:
    """A server and the model that it is asked for.

    Args:
        url: Address up to ``/v1``.
        model: Name of the model; empty while it is not known.
        engine: Name that the server gives to its program, such as ``vllm``; empty if it gives none.
        longest: Longest sequence in tokens that the server says it takes; None if it does not say.
        timeout: Seconds without an answer before a request ends with an error.
        retries: Number of times that a request is repeated if the server is busy or cannot be reached.
    """

    url: str
    model: str = ""
    engine: str = ""
    longest: int | None = None
    timeout: float = 600.0
    retries: int = 2

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    def send(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request and return the JSON object of the answer.

        Args:
            path: Path below ``/v1``.
            body: JSON object to post; None gets the path.

        Raises:
            RefusedRequestError: The server refuses the request.
            LongRopeError: The server cannot be reached, redirects, is busy after all retries, asks for a key, or does
                not answer with JSON.
        """
        answer = self._send_once(path, body)
        for attempt in range(self.retries):
            if isinstance(answer, dict):
                break
            time.sleep(answer.pause or WAIT * 2**attempt)
            answer = self._send_once(path, body)
        if isinstance(answer, dict):
            return answer
        raise LongRopeError(answer.message)

    def _send_once(self, path: str, body: Mapping[str, Any] | None) -> dict[str, Any] | _Busy:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Accept": "application/json"})
        if data is not None:
            request.add_header("Content-Type", "application/json")
        if (key := key_of_environment()) is not None:
            request.add_header("Authorization", f"Bearer {key}")
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                kind, text = answer.headers.get_content_type(), answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return self._failed(path, error, _reason(error))
        except TimeoutError:
            raise self._timed_out() from None
        except (OSError, http.client.HTTPException) as error:
            cause = getattr(error, "reason", error)
            if isinstance(cause, TimeoutError):
                raise self._timed_out() from None
            reason = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
            return _Busy(f"server = {self.url}: no answer ({reason}). Start the server, or correct the address.")
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise LongRopeError(
                f"server = {self.url}: {path} answered with {kind}, not with a JSON object. "
                "Give the address of a server that speaks OpenAI's protocol, such as http://localhost:8000."
            )
        return content

    def _timed_out(self) -> LongRopeError:
        return LongRopeError(f"server = {self.url}: no answer within {self.timeout:g} seconds. Raise the timeout.")

    def _failed(self, path: str, error: urllib.error.HTTPError, reason: str) -> _Busy:
        """Return a failure that may pass; raise any other."""
        status = f"server = {self.url}: {path} answered {error.code} {error.reason}"
        details = f": {reason}" if reason else ""
        if error.code < 400 and (location := error.headers.get("Location")):
            raise LongRopeError(f"{status}: it is at {urljoin(self.url + path, location)}. Give that address.")
        if error.code in (401, 403):
            raise LongRopeError(f"{status}{details}. Set the key in the environment variable {' or '.join(KEYS)}.")
        if error.code in BUSY:
            pause = error.headers.get("Retry-After", "")
            return _Busy(f"{status}{details}. Try again later.", float(pause) if pause.isdigit() else 0.0)
        remedy = "Change the request, or the launch of the server."
        raise RefusedRequestError(f"{status}{details}. {remedy}", reason or str(error.reason))


@dataclass(frozen=True)
class _Busy:
    """A failure after which the same request may succeed.

    Args:
        message: Message of the error if it does not.
        pause: Seconds to wait that the server asks for; 0 if it does not.
    """

    message: str
    pause: float = 0.0


def connect(url: str, model: str | None = None, *, timeout: float = 600.0, retries: int = 2) -> Server:
    """Return a server whose model is known: the given one if the server lists it, or the only one that it has.

    Args:
        url: Address, with or without ``http://`` and ``/v1``.
        model: Name of the model on the server; None if the server has one model.
        timeout: Seconds without an answer before a request ends with an error.
        retries: Number of times that a request is repeated if the server is busy or cannot be reached.

    Raises:
        LongRopeError: The address is wrong, the server cannot be reached, or the model cannot be chosen.
    """
    server = Server(base_address(url), timeout=timeout, retries=retries)
    try:
        listed = server.send("/models").get("data") or []
    except LongRopeError:  # some servers have no list, as transformers' without a network
        if model is None:
            raise
        return replace(server, model=model)
    models = {str(row["id"]): row for row in listed if isinstance(row, dict) and "id" in row}
    if model is None and len(models) == 1:
        [model] = models
    if model is None or (models and model not in models):
        names = ", ".join(models) or "none that it lists"
        raise LongRopeError(
            f"model = {model!r}: the server at {server.url} has {names}. Name one of its models"
            f"{did_you_mean(model or '', models) or '.'}"
        )
    row = models.get(model, {})
    longest = row.get("max_model_len") or (row.get("meta") or {}).get("n_ctx")
    engine = str(row.get("owned_by") or "")
    return replace(server, model=model, engine=engine, longest=longest if isinstance(longest, int) else None)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects as errors: to follow one, a POST would become a GET, and the key would go to another address."""

    def redirect_request(self, *_: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return no request."""


def _reason(answer: urllib.error.HTTPError) -> str:
    """Return a server's own words about a refused request, in one line; empty where they do not arrive."""
    try:
        content = json.loads(answer.read())
    except (ValueError, OSError, http.client.HTTPException):
        content = {}
    if isinstance(content, dict):
        error = content.get("error") or content
        content = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return " ".join(str(content or "").split())[:300].rstrip(".")
