from __future__ import annotations

import shutil
from pathlib import Path

import longrope
from longrope.models.weights_digest import weights_digest, weights_setting

TINY = Path(longrope.__file__).parent / "assets" / "tiny"


def test_a_digest_is_that_of_the_weights_and_not_of_their_place(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(TINY, tmp_path / "copy"))
    assert weights_digest(str(copy)) == weights_digest(str(TINY)) != ""
    (file,) = copy.glob("*.safetensors")
    data = file.read_bytes()
    half = len(data) // 2
    file.write_bytes(data[:half] + bytes(255 - byte for byte in data[half:]))
    assert weights_digest(str(copy)) != weights_digest(str(TINY))
    file.write_bytes(data + b"x")
    assert weights_digest(str(copy)) != weights_digest(str(TINY))
    assert weights_setting(str(TINY)) == {"weights": weights_digest(str(TINY))}


def test_models_without_files_of_their_own_have_none() -> None:
    for name in ("tiny", "meta-llama/Llama-3.2-1B"):
        assert weights_digest(name) == ""
        assert weights_setting(name) == {}
