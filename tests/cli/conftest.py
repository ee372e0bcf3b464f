"""A tiny random model in a folder, text for it, and the command line run in this process."""

from __future__ import annotations

import io
import json
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import families
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.cli.main import main
from longrope.cost import bfloat16_speed

# what was started in the background ignores Ctrl-C, and so would the commands that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)

WORDS = "the cat sat on a mat and def return if else import x y z = + 1 2 3 été\n".split(" ")


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, standard output, standard error (in one line)."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> object:
        """The output as strict JSON."""
        return json.loads(self.out, parse_constant=pytest.fail)


def longrope(*args: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    argv = ["longrope", *map(str, args)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
    return Result(int(code), out.getvalue(), " ".join(err.getvalue().split()))


@pytest.fixture(scope="session", autouse=True)
def _bfloat16_is_as_fast_everywhere() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bfloat16_speed, "bfloat16_slowdown", lambda: 1.0)
        yield


@pytest.fixture(scope="session")
def cli() -> Callable[..., Result]:
    return longrope


def byte_bpe() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        [" ".join(WORDS)] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="!")


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    byte_bpe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of one layer, L0 = 64, 8 pairs."""
    llama = families.build("llama", num_hidden_layers=1, vocab_size=300)
    return save(llama, tmp_path_factory.mktemp("models") / "random-llama")


@pytest.fixture(scope="session")
def no_rope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gpt2 = families.build("gpt2", vocab_size=300, n_embd=64, n_layer=1, n_head=4, n_positions=64)
    return save(gpt2, tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen documents of more than 300 tokens."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    for i in range(15):
        (folder / f"{i:02}.txt").write_text(" ".join(rng.choice(WORDS) for _ in range(400 + 10 * i)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def few(texts: Path) -> tuple[object, ...]:
    """Options that make a search short; at 160 tokens, one evaluation is 320 token-evaluations."""
    return (
        "--data",
        texts,
        "--method",
        "paper",
        "--search-documents",
        2,
        "--held-out-documents",
        2,
        "--population",
        8,
        "--attention",
        "none",
        "--needles",
        0,
    )


@pytest.fixture(scope="session")
def searched(model: Path, few: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A finished run of 10 evaluations; not to be changed."""
    output = tmp_path_factory.mktemp("runs") / "run"
    return output, longrope("search", model, "-l", 160, *few, "--budget", 3200, "-o", output, "--json")


@pytest.fixture
def run(searched: tuple[Path, Result], tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(searched[0], tmp_path / "copied"))


@pytest.fixture(scope="session")
def exported(model: Path, searched: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("checkpoints") / "long"
    result = longrope("export", model, "--factors", searched[0], "-o", output, "--mode", "dual")
    assert result.code == 0, result.err
    return output


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that lies below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="session")
def below() -> Callable[[Path], dict[str, bytes | None]]:
    return snapshot


@pytest.fixture
def refused(cli, below, tmp_path: Path) -> Callable[..., None]:
    """Runs a command that must be refused and must leave the test's folder as it is."""

    def check(said: str, *args: object) -> None:
        before = below(tmp_path)
        result = cli(*args)
        assert (result.code, result.out) == (2, ""), result
        assert re.search(f"error: .*{said}", result.err), result.err
        assert below(tmp_path) == before

    return check
