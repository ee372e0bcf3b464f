from __future__ import annotations

from pathlib import Path

import pytest

from longrope.errors import LongRopeError
from longrope.storage import atomic
from longrope.storage.atomic import write_text
from longrope.storage.lock import claim_output


def test_write_text_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "text"
    write_text(path, "old")
    write_text(str(path), "λ")
    assert path.read_bytes() == "λ".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "text"
    write_text(path, "old")
    with pytest.raises((LongRopeError, UnicodeEncodeError)):
        write_text(path, "begins well, ends badly \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_program_reads_for_a_moment_is_replaced_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows, where such a program has it for itself."""
    refusals, replace = iter([True, True, True]), Path.replace

    def refuse(temporary: Path, path: Path) -> Path:
        if next(refusals, False):
            raise PermissionError(13, "Permission denied")
        return replace(temporary, path)

    monkeypatch.setattr(Path, "replace", refuse)
    monkeypatch.setattr(atomic, "WAITS", ())
    with pytest.raises(LongRopeError, match="cannot write"):
        write_text(tmp_path / "text", "first")
    monkeypatch.setattr(atomic, "WAITS", (0.0, 0.0))
    write_text(tmp_path / "text", "second")
    assert (tmp_path / "text").read_text() == "second"


def test_write_text_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LongRopeError, match=r"cannot write .*file/text.*-o"):
        write_text(tmp_path / "file" / "text", "")


def test_write_text_over_a_folder_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(LongRopeError, match="cannot write"):
        write_text(tmp_path / "folder", "")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target" / "text")
    for text in ("new", "newer"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "target" / "text").read_text() == text
    assert (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["text"]


def test_a_link_whose_target_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file" / "text")
    with pytest.raises(LongRopeError, match=r"cannot write .*link"):
        claim_output(tmp_path / "link", overwrite=False)


@pytest.mark.parametrize("folder", [False, True])
def test_a_place_in_new_folders_is_claimed_and_one_below_a_file_is_not(folder: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    claim_output(tmp_path / "deep" / "new", overwrite=False, folder=folder)
    with pytest.raises(LongRopeError, match=r"file/below.*-o"):
        claim_output(tmp_path / "file" / "below", overwrite=True, folder=folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["file"]
