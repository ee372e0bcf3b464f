from __future__ import annotations

import pytest

from longrope.errors import LongRopeError
from longrope.evaluation import room
from longrope.models.load import load_config


def check(length: int, batch: int) -> None:
    room.check_room(load_config("tiny"), length, batch=batch, dtype="auto", device="cpu")


def test_what_does_not_fit_is_refused_with_what_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: 2**30)
    check(2048, 1)
    with pytest.raises(LongRopeError, match=r"length = 1048576 takes about [\d.]+ GiB .* cpu has 1.0 GiB free") as said:
        check(2**20, 1)
    fits = str(said.value).split("about ")[2].split(" tokens")[0]
    check(int(fits.removesuffix("k")) * 1024, 1)
    with pytest.raises(LongRopeError):  # it is the longest, in steps of 1,024
        check((int(fits.removesuffix("k")) + 1) * 1024, 1)
    with pytest.raises(LongRopeError, match="with batch = 64"):
        check(2**16, 64)


def test_a_device_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_memory", lambda _: None)
    check(2**30, 1)
