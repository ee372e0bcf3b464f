"""The address of a server and the key to it, as a user gives them."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from longrope.errors import LongRopeError

KEYS = ("LONGROPE_API_KEY", "OPENAI_API_KEY")  # environment variables, the first one that is set
ENDPOINTS = ("/chat/completions", "/completions", "/models")


def base_address(url: str) -> str:
    """Return an address with its scheme, up to ``/v1``.

    Raises:
        LongRopeError: The address is not one of HTTP, or holds a password.

    >>> base_address("localhost:8000"), base_address("https://host/serve/v1/completions")
    ('http://localhost:8000/v1', 'https://host/serve/v1')
    """
    url = url if "://" in url else f"http://{url}"
    try:
        address = urlsplit(url)
        host, _ = address.hostname, address.port
        (host or "").encode("idna")
        address.path.encode("ascii")
    except ValueError:
        address, host = urlsplit(""), None
    if address.scheme not in ("http", "https") or not host:
        raise LongRopeError(f"server = {url!r}: not an address of HTTP. Write http://localhost:8000.")
    if "@" in address.netloc:
        raise LongRopeError(
            f"server = http://…@{host}: the address holds a password. Set it as {' or '.join(KEYS)} instead."
        )
    path = address.path.rstrip("/")
    for endpoint in ENDPOINTS:
        path = path.removesuffix(endpoint)
    return f"{address.scheme}://{address.netloc}{path if path.endswith('/v1') else f'{path}/v1'}"


def key_of_environment() -> str | None:
    """Return the key that the environment holds, without white space around it.

    Raises:
        LongRopeError: It has a character that no header of HTTP can hold.
    """
    name = next((name for name in KEYS if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    key = os.environ[name].strip()
    if not (key.isascii() and key.isprintable()):
        raise LongRopeError(f"{name}: the key has a character that HTTP cannot send. Set the key alone.")
    return key
