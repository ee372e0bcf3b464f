"""A server of another make: a real transformers model behind Python's own HTTP server, in OpenAI's protocol."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from longrope.models.cache import cache_argument
from longrope.models.patch import patch
from longrope.scaling import Extension, Scaling

Reply = tuple[int, dict[str, Any] | str]
NAME = "served"


@dataclass
class ModelServer:
    """What the server computes with, and how it treats prompts.

    Args:
        model: Model that computes the answers.
        tokenizer: Its tokenizer.
        scaling: Factors to put into the model; None leaves it as it is.
        limit: Longest sequence in tokens; a longer one is refused.
        cut: Number of last tokens of a prompt that are read.
        form: Form of log-probabilities: ``ids`` as vLLM, ``texts`` as OpenAI, ``objects`` as llama.cpp, or ``none``.
        bos: Whether a beginning-of-text token is put before a prompt that is a text.
        takes_ids: Whether a prompt may be token ids.
        failing: Number of requests after which all others are answered with 400.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scaling: Scaling | Extension | None = None
    limit: int | None = None
    cut: int | None = None
    form: str = "ids"
    bos: bool = False
    takes_ids: bool = True
    failing: int | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            return 200, {"data": [{"id": NAME, "max_model_len": self.limit, "owned_by": "transformers"}]}
        if body["model"] != NAME:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        if "return_tokens_as_token_ids" in body and self.form != "ids":
            return 422, {"detail": "Unexpected fields in the request"}
        if not isinstance(body["prompt"], str) and not self.takes_ids:
            return 400, {"detail": "prompt must be a string."}
        with self.lock:
            self.requests.append(body)
            if self.failing is not None and len(self.requests) > self.failing:
                return 400, {"error": {"message": "out of order"}}
            return self.complete(body)

    def complete(self, body: dict[str, Any]) -> Reply:
        prompt = body["prompt"]
        tokens = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        tokens = [self.tokenizer.bos_token_id, *tokens] if self.bos and isinstance(prompt, str) else tokens
        if self.limit is not None and len(tokens) + body["max_tokens"] > self.limit:
            return 400, {"error": {"message": f"maximum context length is {self.limit} tokens"}}
        tokens = tokens if self.cut is None else tokens[-self.cut :]
        generated, rows = self.generate(tokens, body["max_tokens"])
        choice = {"text": self.tokenizer.decode(generated, skip_special_tokens=True), "finish_reason": "length"}
        if "logprobs" in body and self.form != "none":
            choice["logprobs"] = self.logprobs(generated, rows, body["logprobs"])
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(tokens)}}

    @torch.inference_mode()
    def generate(self, tokens: list[int], count: int) -> tuple[list[int], list[torch.Tensor]]:
        generated: list[int] = []
        rows: list[torch.Tensor] = []
        ids, cached = torch.tensor([tokens]), {cache_argument(self.model): DynamicCache()}
        with patch(self.model, self.scaling):
            while len(generated) < count and self.tokenizer.eos_token_id not in generated[-1:]:
                logits = self.model(input_ids=ids, logits_to_keep=1, **cached).logits[0, -1]
                rows.append(logits.log_softmax(-1))
                generated.append(int(logits.argmax()))
                ids = torch.tensor([generated[-1:]])
        return generated, rows

    def logprobs(self, generated: list[int], rows: list[torch.Tensor], count: int) -> dict[str, Any]:
        def text(token: int) -> str:
            return f"token_id:{token}" if self.form == "ids" else str(self.tokenizer.decode([token]))

        top = [[(int(i), float(value)) for value, i in zip(*row.topk(count), strict=True)] for row in rows]
        if self.form == "objects":
            objects = [[{"id": i, "token": text(i), "logprob": value} for i, value in row] for row in top]
            return {"content": [{**row[0], "top_logprobs": row} for row in objects]}
        return {"tokens": [*map(text, generated)], "top_logprobs": [{text(i): v for i, v in row} for row in top]}


@contextmanager
def serving(reply: Callable[[str, dict[str, Any] | None], Reply], headers: Any = None) -> Iterator[str]:
    """Run an HTTP server of a function (path, body or None) -> (status, JSON object or text), and yield its address.

    Args:
        reply: Function that answers.
        headers: List that gets the headers of each request; None drops them.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(None)

        def do_POST(self) -> None:
            self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def answer(self, body: dict[str, Any] | None) -> None:
            if headers is not None:
                headers.append(dict(self.headers))
            status, content = reply(self.path, body)
            is_json = isinstance(content, dict)
            data = (json.dumps(content) if is_json else content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if is_json else "text/html; charset=utf-8")
            if 300 <= status < 400:
                self.send_header("Location", data.decode())
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with suppress(BrokenPipeError):  # of a client that waited no longer
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
