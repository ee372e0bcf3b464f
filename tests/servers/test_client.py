"""Requests to servers that are down, busy, of another kind, or ask for a key."""

from __future__ import annotations

import socket
import time
from threading import Thread
from typing import Any

import pytest
from model_server import serving

from longrope.errors import LongRopeError
from longrope.servers import client
from longrope.servers.address import KEYS, base_address
from longrope.servers.client import RefusedRequestError, Server, connect
from longrope.servers.completion import complete

MODELS = {"data": [{"id": "a", "max_model_len": 512, "owned_by": "vllm"}, {"id": "big-model"}]}
ANSWER = {"choices": [{"text": "hi"}], "usage": {"prompt_tokens": 2}}


@pytest.fixture(autouse=True)
def _short_waits_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT", 0.001)
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def test_a_server_that_is_down_is_named_after_retries() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(LongRopeError, match=rf"server = {url}/v1: no answer \(Connection refused\). Start the server"):
        connect(url)


def test_html_is_not_an_answer() -> None:
    with serving(lambda path, body: (200, "<html>hello</html>")) as url:
        with pytest.raises(LongRopeError, match="/models answered with text/html, not with a JSON object"):
            connect(url)
        with pytest.raises(LongRopeError, match="/completions answered with text/html"):
            complete(connect(url, "a"), "x", tokens=1)  # a server without a list of models is asked all the same


def test_an_object_that_is_not_a_completion_is_refused() -> None:
    with serving(lambda path, body: (200, {"error": "none"})) as url, pytest.raises(LongRopeError, match="not a compl"):
        complete(Server(f"{url}/v1", "a"), "x", tokens=1)


def test_the_model_is_chosen_from_the_list() -> None:
    with serving(lambda path, body: (200, MODELS)) as url:
        server = connect(url, "a")
        assert (server.model, server.longest, server.engine) == ("a", 512, "vllm")
        with pytest.raises(LongRopeError, match=r"has a, big-model\. Name one of its models"):
            connect(url)
        with pytest.raises(LongRopeError, match=r"model = 'big-modle'.*did you mean 'big-model'\?"):
            connect(url, "big-modle")
    with serving(lambda path, body: (200, {"data": MODELS["data"][1:]})) as url:
        assert connect(url).model == "big-model"


def test_a_busy_server_is_asked_again() -> None:
    replies: list[Any] = [(503, {"error": "loading"}), (429, {}), (200, ANSWER)]
    with serving(lambda path, body: replies.pop(0)) as url:
        completion = complete(Server(f"{url}/v1", "a"), "x", tokens=1)
    assert (completion.text, completion.prompt_tokens) == ("hi", 2)
    with (
        serving(lambda path, body: (503, {"error": {"message": "still loading"}})) as url,
        pytest.raises(LongRopeError, match=r"503 Service Unavailable: still loading\. Try again later"),
    ):
        complete(Server(f"{url}/v1", "a", retries=1), "x", tokens=1)


def test_a_refusal_has_the_servers_words_and_is_not_repeated() -> None:
    asked = []

    def reply(path: str, body: Any) -> Any:
        asked.append(path)
        return 400, {"error": {"message": "too long\nby far."}}

    with serving(reply) as url, pytest.raises(RefusedRequestError, match="400 Bad Request: too long by far") as caught:
        complete(Server(f"{url}/v1", "a"), "x", tokens=1)
    assert caught.value.reason == "too long by far"
    assert asked == ["/v1/completions"]


@pytest.mark.parametrize(
    "answer", [{"error": None, "message": "too long"}, {"error": ["too long"]}, {"detail": "too long"}]
)
def test_a_refusal_in_any_form_is_shown(answer: Any) -> None:
    with serving(lambda path, body: (400, answer)) as url, pytest.raises(RefusedRequestError, match="too long"):
        complete(Server(f"{url}/v1", "a"), "x", tokens=1)


def test_a_slow_server_ends_in_an_error() -> None:
    def reply(path: str, body: Any) -> Any:
        time.sleep(0.5)
        return 200, MODELS

    with serving(reply) as url, pytest.raises(LongRopeError, match=r"no answer within 0.1 seconds. Raise the timeout"):
        connect(url, timeout=0.1)


def test_the_key_comes_from_the_environment_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[dict[str, str]] = []
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("LONGROPE_API_KEY", "secret")
    with (
        serving(lambda path, body: (401, {"error": {"message": "no"}}), headers) as url,
        pytest.raises(LongRopeError, match="Set the key in the environment variable LONGROPE_API_KEY") as caught,
    ):
        complete(Server(f"{url}/v1", "a"), "x", tokens=1)
    assert headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("value", "sent"), [("secret\r\n", "Bearer secret"), (" \n", "Bearer other")])
def test_white_space_around_a_key_is_not_sent(monkeypatch: pytest.MonkeyPatch, value: str, sent: str) -> None:
    headers: list[dict[str, str]] = []
    monkeypatch.setenv("LONGROPE_API_KEY", value)
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    with serving(lambda path, body: (200, MODELS), headers) as url:
        connect(url, "a")
    assert headers[0]["Authorization"] == sent


@pytest.mark.parametrize("key", ["sec\nret", "“secret”"])
def test_a_key_that_no_header_holds_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("LONGROPE_API_KEY", key)
    with pytest.raises(LongRopeError, match="LONGROPE_API_KEY: the key has a character that HTTP cannot") as caught:
        connect("http://127.0.0.1:9")
    assert "ret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_names_the_other_address_and_sends_it_nothing(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("LONGROPE_API_KEY", "secret")
    requests: list[dict[str, str]] = []
    with (
        serving(lambda path, body: (200, MODELS), requests) as other,
        serving(lambda path, body: (status, other + path)) as url,
    ):
        with pytest.raises(
            LongRopeError, match=rf"/models answered {status} .*: it is at {other}/v1/models\. Give that"
        ):
            connect(url)
        with pytest.raises(LongRopeError, match=rf"/completions answered {status} .*: it is at {other}/v1/completions"):
            complete(connect(url, "a"), "x", tokens=1)
        assert requests == []
        assert connect(f"{other}/v1/completions", "a").model == "a"  # as the message names it


def test_a_redirect_may_be_relative_to_its_page() -> None:
    with (
        serving(lambda path, body: (308, "models/")) as url,
        pytest.raises(LongRopeError, match=rf"it is at {url}/v1/models/\. Give that"),
    ):
        connect(url)


def test_an_error_that_breaks_off_is_still_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"

        def answer() -> None:
            with server.accept()[0] as client:
                client.recv(9999)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 100\r\n\r\n{")

        thread = Thread(target=answer)
        thread.start()
        with pytest.raises(RefusedRequestError, match=r"/models answered 400 Bad Request\. Change"):
            connect(url)
        thread.join()


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:port", "http://[", "", "a..b", "host/é"])
def test_bad_addresses_are_refused(url: str) -> None:
    with pytest.raises(LongRopeError, match=r"not an address of HTTP. Write http://localhost:8000"):
        base_address(url)


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    with pytest.raises(LongRopeError, match=r"holds a password\. Set it as LONGROPE_API_KEY") as caught:
        base_address("http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)
