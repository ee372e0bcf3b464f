"""``longrope eval --server``: the retrieval tasks on a running server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from longrope.cli import distributed
from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longrope.evaluation.candidate import Candidate
    from longrope.evaluation.results import EvalResults
    from longrope.evaluation.runner import EvalContext
    from longrope.servers.client import Server


def connect_server(url: str | None, model: str | None, retrieval: str | None, *, timeout: float) -> Server | None:
    """Return the server of an evaluation; None without an address.

    Args:
        url: Address of the server.
        model: Name of the model on it; None if it has one.
        retrieval: Names of retrieval tasks.
        timeout: Seconds without an answer before a request ends with an error.

    Raises:
        LongRopeError: There is nothing that the server can be asked, or the server cannot be reached.
    """
    from longrope.servers.client import connect

    if url is None:
        return None
    if retrieval is None:
        raise LongRopeError(f"server = {url!r}: no retrieval task was named. Give some as retrieval, such as passkey.")
    if distributed.count() > 1:
        raise LongRopeError(f"server = {url!r}: one process asks the server. Start one.")
    return connect(url, model, timeout=timeout)


def candidates_of(server: Server) -> dict[str, Candidate]:
    """Return the candidate that stands for a server, named after its model and address."""
    from longrope.evaluation.candidate import Candidate

    name = f"{server.model} at {server.address}"
    return {name: Candidate(name)}


def settings_of(server: Server | None) -> dict[str, str]:
    """Return what the journal keeps of a server; nothing without one."""
    return {} if server is None else {"server": server.url, "server_model": server.model}


def runner(
    server: Server, tokenizer: PreTrainedTokenizerBase, concurrency: int
) -> Callable[[EvalContext], EvalResults]:
    """Return the function that evaluates a server with at most ``concurrency`` requests at a time."""
    from longrope.servers.retrieval import evaluate_server

    return partial(evaluate_server, server=server, tokenizer=tokenizer, concurrency=concurrency)
