"""Retrieval tasks on a running server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import numpy as np

from longrope.errors import LongRopeError
from longrope.evaluation.results import EvalResults
from longrope.evaluation.retrieval import RETRIEVAL
from longrope.servers.client import RefusedRequestError, Server
from longrope.servers.completion import complete
from longrope.tasks.scoring import PromptScore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from longrope.evaluation.runner import EvalContext
    from longrope.tasks.prompts import Prompt

ContentOf = Callable[["Prompt"], "str | list[int]"]  # what a server is sent of a prompt


def evaluate_server(
    evaluation: EvalContext, *, server: Server, tokenizer: PreTrainedTokenizerBase, concurrency: int
) -> EvalResults:
    """Ask a server the prompts that are missing in the evaluation's store, and sum up its scores.

    Args:
        evaluation: Evaluation with the server as its one candidate.
        server: Server to ask.
        tokenizer: Tokenizer that made the prompts.
        concurrency: Requests at a time.

    Raises:
        LongRopeError: The server fails, refuses a prompt or cuts it.
    """
    [(name, candidate)] = evaluation.candidates.items()
    _check_lengths(evaluation, server)
    sample_sets, retrieval = RETRIEVAL.sample_sets(evaluation), evaluation.spec.retrieval.values()
    missing = [evaluation.store.missing(candidate, samples) for samples in sample_sets]
    total = sum(samples.count for samples in sample_sets)
    done = total - sum(map(len, missing))
    content_of: ContentOf | None = None
    for samples, prompts, indices in zip(sample_sets, retrieval, missing, strict=True):
        if not indices:
            continue
        content_of = content_of or _choose_content(server, tokenizer, prompts[indices[0]])
        for index, score in _scores(server, content_of, prompts, indices, concurrency):
            prompt = prompts[index]
            value = {"depth": prompt.depth, "choices": 1 + len(prompt.wrong), **asdict(score)}
            evaluation.store.add(candidate, samples, index, value)
            done += 1
            evaluation.on_progress(done, total, samples.name)
    return EvalResults(
        rope=evaluation.rope,
        candidates=evaluation.candidates,
        records={RETRIEVAL.name: {name: tuple(RETRIEVAL.aggregate(evaluation, name) or ())}},
        lengths=tuple(sorted({length for _, length in evaluation.spec.retrieval})),
        corpora={
            corpus.name: {"documents": list(corpus.documents), "hash": corpus.hash} for corpus in evaluation.corpora
        },
    )


def _check_lengths(evaluation: EvalContext, server: Server) -> None:
    longest = max(length for _, length in evaluation.spec.retrieval)
    if server.longest is not None and server.longest < longest:
        raise LongRopeError(
            f"retrieval_lengths = {longest}: the server takes {server.longest} tokens at most. Use shorter lengths, "
            "or launch the server for longer ones."
        )


def _choose_content(server: Server, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> ContentOf:
    """Return the function that makes a prompt's token ids, or its text where the server takes text alone."""
    try:
        complete(server, prompt.tokens[:16].tolist(), tokens=1)
    except RefusedRequestError:
        return lambda prompt: _text(tokenizer, prompt.tokens)
    return lambda prompt: prompt.tokens.tolist()


def _text(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> str:
    """Return the text of a prompt without the start that a server's tokenizer puts before it."""
    start = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] == tokens[:1].tolist()
    return str(tokenizer.decode(tokens[1:] if start else tokens, clean_up_tokenization_spaces=False))


def _scores(
    server: Server, content_of: ContentOf, prompts: Sequence[Prompt], indices: Sequence[int], concurrency: int
) -> Iterator[tuple[int, PromptScore]]:
    """Yield the score of each prompt as soon as the server has answered it.

    The threads are daemons, so that an interrupt does not wait for answers.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    answered: SimpleQueue[tuple[int, PromptScore] | Exception] = SimpleQueue()
    for index in indices:
        waiting.put(index)

    def work() -> None:
        with suppress(Empty):
            while True:
                index = waiting.get_nowait()
                answered.put(_score_or_error(server, content_of, prompts, index))

    for _ in range(min(concurrency, len(indices))):
        Thread(target=work, daemon=True).start()
    try:
        for _ in indices:
            answer = answered.get()
            if isinstance(answer, Exception):
                raise answer
            yield answer
    finally:
        with suppress(Empty):  # after an error, nothing more is sent
            while True:
                waiting.get_nowait()


def _score_or_error(
    server: Server, content_of: ContentOf, prompts: Sequence[Prompt], index: int
) -> tuple[int, PromptScore] | Exception:
    try:
        return index, _score(server, content_of, prompts[index])
    except Exception as error:  # of a thread, for the one that waits
        return error


def _score(server: Server, content_of: ContentOf, prompt: Prompt) -> PromptScore:
    content = content_of(prompt)
    completion = complete(server, content, tokens=prompt.room)
    tokens, read = len(prompt.tokens), completion.prompt_tokens
    tolerated = max(2, tokens // 100) if isinstance(content, str) else 0  # a text may be split into other tokens
    if read is not None and read < tokens - tolerated:
        raise LongRopeError(
            f"server = {server.url}: it read {read} of the {tokens} tokens of a prompt, without an error. "
            "Launch it for longer prompts, or use shorter lengths."
        )
    return PromptScore(prompt.score(completion.text), completion.text)
