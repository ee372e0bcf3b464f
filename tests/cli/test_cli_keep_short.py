from __future__ import annotations

from pathlib import Path


def test_the_command_says_so_and_fails_where_nothing_keeps_the_limit(cli, tmp_path: Path) -> None:
    small = ("--search-documents", 1, "--held-out-documents", 1, "--population", 4, "--data", "stdlib:unseen")
    kept = cli("search", "tiny", "-l", 512, *small, "--keep-short", "900%", "-o", tmp_path / "kept")
    assert kept.code == 0
    assert "the limit is 900.0%" in " ".join(kept.out.split())
    broken = cli("search", "tiny", "-l", 512, *small, "--keep-short", "0", "--attention", 2, "-o", tmp_path / "broken")
    assert broken.code == 1
    assert "Nothing that keeps the limit is as good" in broken.out
    assert (tmp_path / "broken" / "extension.json").exists()
    wrong = cli("search", "tiny", "-l", 512, *small, "--keep-short", "little", "-o", tmp_path / "wrong")
    assert wrong.code == 2
    assert "--keep-short = 'little': not a share" in wrong.err
