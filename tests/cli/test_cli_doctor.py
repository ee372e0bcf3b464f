from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from longrope.cli import doctor
from longrope.cost import bfloat16_speed

Cli = Callable[..., Any]


def test_what_it_says_is_so(cli: Cli) -> None:
    result = cli("doctor", "--json")
    assert result.code == 0, result.err
    packages = {one["name"]: one for one in result.json["packages"]}
    assert packages["python"]["found"] == platform.python_version()
    for name in ("longrope", "torch", "transformers", "numpy"):
        assert packages[name]["found"] == importlib.metadata.version(name)
    assert "gguf" not in packages, "an extra is no requirement"
    machine = {one["name"]: one["found"] for one in result.json["machine"]}
    assert f"of {psutil.virtual_memory().total / 2**30:.1f} GiB" in machine["memory"]
    features = {one["name"]: one["found"] for one in result.json["features"]}
    assert features["fine-tuning with LoRA"] == "there"


def test_what_is_missing_is_named_with_its_remedy(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else find(name, *rest))
    result = cli("doctor")
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if "fine-tuning with LoRA" in line]
    assert "missing" in line
    assert 'pip install "longrope[lora]"' in line


def test_a_package_that_is_too_old_or_missing_fails(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["numpy>=999", "no-such-package>=1", "tomli>=2; python_version < '3'", "peft>=999; extra == 'lora'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)
    result = cli("doctor", "--json")
    assert result.code == 1
    broken = {one["name"]: one["remedy"] for one in result.json["packages"] if one["broken"]}
    assert broken == {"numpy": 'pip install "numpy>=999"', "no-such-package": 'pip install "no-such-package>=1"'}


def test_without_torch_it_still_names_what_is_missing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    find_version = importlib.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return find_version(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torch", None)  # its import fails, as where it is not installed
    result = cli("doctor", "--json")
    assert result.code == 1, result.err
    broken = {line["name"]: line["remedy"] for line in result.json["packages"] if line["broken"]}
    assert list(broken) == ["torch"]
    assert broken["torch"].startswith('pip install "torch>=')
    assert [line["found"] for line in result.json["machine"]] == ["needs torch"]


@pytest.mark.parametrize(("ratio", "advised"), [(0.4, False), (25.0, True)])
def test_slow_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch, ratio: float, advised: bool) -> None:
    monkeypatch.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: ratio)
    (found,) = [one for one in doctor.machine() if one.name == "bfloat16"]
    assert ("float32" in found.remedy) == advised
