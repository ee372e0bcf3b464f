from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from longrope.data import stdlib
from longrope.data.stdlib import is_unseen, stdlib_documents


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return dict(stdlib_documents())


def test_documents_are_sorted_distinct_and_not_empty(documents: dict[str, str]) -> None:
    assert list(documents) == sorted(documents)
    assert len(documents) > 100
    assert all(documents.values())


def test_a_package_is_its_modules_joined_and_a_module_is_itself(documents: dict[str, str]) -> None:
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [path.read_text(encoding="utf-8") for path in sorted((root / "json").glob("*.py"))]
    assert documents["json"] == "\n".join(texts)
    assert documents["argparse"] == (root / "argparse.py").read_text(encoding="utf-8")


def test_no_tests_no_tables_no_machine_in_them(documents: dict[str, str]) -> None:
    assert documents.keys().isdisjoint({"test", "encodings", "ensurepip", "site-packages"})
    assert not any(name.startswith("_sysconfigdata") for name in documents)


def test_unseen_is_the_same_part_every_time(documents: dict[str, str]) -> None:
    unseen = stdlib_documents(unseen=True)
    assert unseen == stdlib_documents(unseen=True)
    assert unseen == [(name, text) for name, text in documents.items() if is_unseen(name)]


def test_the_rule_is_frozen() -> None:
    """The weights in assets/tiny were trained by this rule: another salt would leak documents into evaluation."""
    assert all(map(is_unseen, ("asyncio", "importlib", "multiprocessing", "unittest")))
    assert not any(map(is_unseen, ("email", "idlelib", "tkinter", "xml")))


def test_unseen_has_enough_long_documents(documents: dict[str, str]) -> None:
    sizes = [len(text) for name, text in documents.items() if is_unseen(name)]
    assert 0.2 < sum(sizes) / sum(map(len, documents.values())) < 0.45
    assert sum(size > 20_000 for size in sizes) >= 16
    assert max(sizes) > 300_000


def test_a_file_that_is_not_utf8_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pack" / "tests").mkdir(parents=True)
    (tmp_path / "pack" / "a.py").write_text("a = 1\n")
    (tmp_path / "pack" / "b.py").write_bytes(b"\xff\xfe\xfa")
    (tmp_path / "pack" / "tests" / "c.py").write_text("c = 3\n")
    (tmp_path / "bad.py").write_bytes(b"\xff")
    (tmp_path / "config-3").mkdir()
    (tmp_path / "config-3" / "d.py").write_text("d = 4\n")
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    assert stdlib_documents() == [("pack", "a = 1\n")]
