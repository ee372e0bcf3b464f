from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest

from longrope.engines.registry import ENGINES
from longrope.engines.rules import Engine, Rule, by_launch, formula
from longrope.export.huggingface import export_huggingface
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import heuristic

Refused = Callable[..., None]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random Llama exported in both modes and a Gemma 2: L0 = 64, L = 512."""
    folder, made = tmp_path_factory.mktemp("exported"), {}
    for kind, mode in (("llama", "dual"), ("llama", "static"), ("gemma2", "static")):
        model = families.build(kind)
        rope = Rope.of(model)
        long = heuristic(rope, 512)
        short = Scaling([1.0] * (rope.dim // 2), attention_factor=long.attention_factor)
        made[f"{kind}-{mode}"] = folder / f"{kind}-{mode}"
        extension = Extension(rope=rope, short=short, long=long, length=512)
        export_huggingface(model, families.tokenizer(), extension, made[f"{kind}-{mode}"], mode=mode)
    return made


def rows(cli: Callable[..., Any], *args: object) -> tuple[int, list[dict[str, Any]]]:
    result = cli("check", *args, "--json")
    return result.code, result.json


def test_a_static_checkpoint_is_as_made(cli, checkpoints: dict[str, Path]) -> None:
    for engine in ("vllm", "mlx-lm", "exllamav2", "transformers"):
        code, told = rows(cli, checkpoints["llama-static"], "--engine", engine)
        assert (code, [row["length"] for row in told]) == (0, [64, 65, 512])
        assert all(row["ok"] and row["attention_factor"] == pytest.approx(1.5**0.5) for row in told)


def test_every_engine_and_every_length(cli, checkpoints: dict[str, Path]) -> None:
    code, told = rows(cli, checkpoints["llama-dual"], "--engine", "all", "--lengths", "50,64,65,512")
    assert code == 1
    assert [(row["engine"], row["length"]) for row in told] == [
        (name, n) for name in ENGINES for n in (50, 64, 65, 512)
    ]
    wrong = {row["engine"]: [] for row in told}
    for row in told:
        wrong[row["engine"]] += [] if row["ok"] else [row["length"]]
        assert bool(row["departures"]) != row["ok"]
        assert row["version"] == ENGINES[row["engine"]].version
    early = {"transformers": [], "transformers-4.57": [], "sglang": [65]}
    assert wrong == {name: early.get(name, [50, 64]) for name in ENGINES}


def test_launched_for_less(cli, checkpoints: dict[str, Path]) -> None:
    code, told = rows(cli, checkpoints["llama-dual"], "--engine", "vllm", "--max-length", "64")
    assert (code, [(row["length"], row["factors"], row["max_length"]) for row in told]) == (0, [(64, "short", 64)])
    code, told = rows(cli, checkpoints["llama-dual"], "--engine", "vllm", "--max-length", "100", "--lengths", "101")
    assert (code, told[0]["factors"], told[0]["attention_factor"]) == (1, "refused", None)


def test_an_engine_from_outside(cli, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = Engine("1.0", {"llama": Rule(by_launch, formula)}, launch="mine {folder}")
    monkeypatch.setitem(ENGINES, "mine", mine)
    code, predictions = rows(cli, checkpoints["llama-static"], "--engine", "mine")
    assert (code, [row["version"] for row in predictions]) == (0, ["1.0"] * 3)
    _, predictions = rows(cli, checkpoints["llama-dual"], "--engine", "all")
    assert [row["factors"] for row in predictions if row["engine"] == "mine"] == ["long"] * 3


def test_launched_for_too_much(cli, checkpoints: dict[str, Path]) -> None:
    result = cli("check", checkpoints["llama-static"], "--engine", "vllm", "--max-length", "1k")
    assert result.code == 1
    assert "vllm does not start for 1,024 tokens: max_position_embeddings is 512" in result.out


def test_what_is_printed(cli, checkpoints: dict[str, Path]) -> None:
    result = cli("check", checkpoints["gemma2-static"], "--engine", "sglang", "--lengths", "64,512")
    assert result.code == 1
    assert result.out.count("DEPARTS") == 2
    assert (
        "Warning: model type 'gemma2': sglang uses no factors at all at 64 tokens, where the checkpoint's belong"
        in result.out
    )
    result = cli("check", checkpoints["llama-dual"], "--engine", "transformers", "--lengths", "64")
    assert (result.code, result.out.count("as made")) == (0, 1)
    assert "In serving: transformers: a batch takes the set of its longest row" in result.out


def test_an_edited_config_departs_from_extension_json(cli, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints["llama-static"], tmp_path / "edited"))
    config = json.loads((folder / "config.json").read_text())
    config["rope_scaling"]["long_factor"] = [9.0] * 8
    (folder / "config.json").write_text(json.dumps(config))
    code, told = rows(cli, folder, "--engine", "vllm", "--lengths", "512")
    assert (code, told[0]["ok"]) == (1, False)
    (folder / "extension.json").unlink()  # then the config is all there is to go by
    code, told = rows(cli, folder, "--engine", "vllm", "--lengths", "512")
    assert (code, told[0]["ok"]) == (0, True)


def test_refusals(refused: Refused, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    folder = checkpoints["llama-static"]
    refused("engine = 'vlm' is unknown; choose one of all", "check", folder, "--engine", "vlm")
    refused("either MODEL.* or --engine", "check", folder)
    refused("either MODEL.* or --engine", "check", folder, "tiny", "--engine", "vllm")
    refused("device = 'cpu': --engine runs nothing", "check", folder, "--engine", "vllm", "--device", "cpu")
    refused("max_length = '64' is for --engine", "check", folder, "tiny", "--max-length", "64")
    refused("max_length = '6q' is not a number of tokens", "check", folder, "--engine", "vllm", "--max-length", "6q")
    refused("no config.json", "check", tmp_path / "nothing", "--engine", "vllm")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text('{"model_type": "llama"}')
    refused("no longrope factors", "check", tmp_path / "plain", "--engine", "all")
    (tmp_path / "plain" / "config.json").write_text("[]")
    refused("no config.json", "check", tmp_path / "plain", "--engine", "all")


def test_no_torch_is_loaded(checkpoints: dict[str, Path]) -> None:
    code = (
        "import sys\nfrom longrope.cli.main import app\n"
        f"app(['check', {str(checkpoints['llama-static'])!r}, '--engine', 'vllm', '--json'], standalone_mode=False)\n"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
