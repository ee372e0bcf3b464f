"""Hostile checkpoints, paths and names cannot run code, write outside the output folder, or forge a page.

longrope's own processes exchange objects by pickle: ``objectives/local_workers.py`` directly, ``concurrent.futures``,
``torch.distributed`` and Ray internally. No file is involved, and both ends belong to the same user. From files only
``pytorch_model.bin`` is unpickled, by torch's ``weights_only`` loading inside transformers.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import longrope
from longrope.errors import LongRopeError
from longrope.export.huggingface import export_huggingface
from longrope.models.load import load, load_config, load_tokenizer
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling

SOURCE = Path(longrope.__file__).parent
TINY = SOURCE / "assets" / "tiny"
MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
CALLS = ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pickle.load", "torch.hub.load")
BETWEEN_PROCESSES = {"objectives/local_workers.py": ["pickle"]}
REQUIRED = {"torch.load": ("weights_only", True)}
FORBIDDEN = ("shell", "allow_pickle", "trust_remote_code")


def faults(source: str) -> Iterator[str]:
    """Yield each import or call that unpickles or runs text as code, or lets a shell or a checkpoint do so."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (name for name in names if name.partition(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            yield from [called] if called in CALLS else []
            yield from (f"{name} = {keywords[name]}" for name in FORBIDDEN if keywords.get(name, "False") != "False")
            if called in REQUIRED and keywords.get(REQUIRED[called][0]) != str(REQUIRED[called][1]):
                yield called


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_source_unpickles_or_runs_text(path: Path) -> None:
    name = path.relative_to(SOURCE).as_posix()
    assert list(faults(path.read_text(encoding="utf-8"))) == BETWEEN_PROCESSES.get(name, [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib.x import y",
        "eval('1')",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=asked)",
    ],
)
def test_a_fault_is_seen(source: str) -> None:
    assert list(faults(source))
    assert not list(faults("model.eval(); torch.load(path, weights_only=True); np.load(path, allow_pickle=False)"))


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "in" / "checkpoint"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("read", [load_config, load, load_tokenizer])
def test_code_of_a_checkpoint_never_runs(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read, capsys
) -> None:
    """Answer yes to every question: transformers would ask and then run the code."""
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    change(checkpoint / "config.json", auto_map=code, model_type="its_own")
    change(checkpoint / "tokenizer_config.json", auto_map={"AutoTokenizer": code["AutoTokenizer"]})
    change(checkpoint / "tokenizer_config.json", tokenizer_class="Tokenizer")
    (checkpoint / "own.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(LongRopeError, match=r"code of its own.*give a checkpoint of"):
        read(str(checkpoint))
    assert not (tmp_path / "marker").exists()
    assert "[y/N]" not in capsys.readouterr().out


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("hostile", [True, False])
def test_pickled_weights_are_loaded_as_weights_only(checkpoint: Path, tmp_path: Path, hostile: bool) -> None:
    weights = load("tiny")[0].state_dict()
    (checkpoint / "model.safetensors").unlink()
    torch.save({**weights, **({"x": Touch(tmp_path / "marker")} if hostile else {})}, checkpoint / "pytorch_model.bin")
    if hostile:
        with pytest.raises(LongRopeError, match=r"cannot be loaded.*Weights only load failed"):
            load(str(checkpoint))
    else:
        assert torch.equal(load(str(checkpoint))[0].lm_head.weight, weights["lm_head.weight"])
    assert not (tmp_path / "marker").exists()


def extension(length: int = 512, **fields: object) -> Extension:
    rope = Rope.of(load_config("tiny"))
    return Extension.of(rope, Scaling([2.0] * (rope.dim // 2), length=length, **fields))


def test_an_export_copies_neither_links_nor_strange_files(checkpoint: Path, tmp_path: Path) -> None:
    """Link every file of the checkpoint, as a hub's cache does, beside files that must not be copied."""
    store = tmp_path / "store"
    store.mkdir()
    for path in list(checkpoint.iterdir()):
        shutil.move(path, store / path.name)
        path.symlink_to(store / path.name)
    (checkpoint / "own.py").write_text("1 / 0")
    (checkpoint / "passwd").symlink_to("/etc/passwd")
    before = tree(store)
    model, tokenizer = load(str(checkpoint))
    out = tmp_path / "out" / "extended"
    export_huggingface(model, tokenizer, extension(), out, check=False)
    assert tree(store) == before
    assert not [path for path in out.rglob("*") if path.is_symlink() or path.name in ("own.py", "passwd")]
    assert [path.name for path in out.parent.iterdir()] == ["extended"]


def test_a_tokenizer_names_no_file_outside(checkpoint: Path, tmp_path: Path) -> None:
    """Transformers writes a chat template to a file named after it."""
    templates = [{"name": "default", "template": "x"}, {"name": "../../../../pwned", "template": "y"}]
    (checkpoint / "chat_template.jinja").unlink(missing_ok=True)
    change(checkpoint / "tokenizer_config.json", chat_template=templates)
    model, tokenizer = load(str(checkpoint))
    assert "../../../../pwned" in tokenizer.chat_template
    before, out = tree(tmp_path), tmp_path / "deep" / "er" / "out"
    with pytest.raises(LongRopeError, match="pwned"):
        export_huggingface(model, tokenizer, extension(), out, check=False)
    assert tree(tmp_path) == before
