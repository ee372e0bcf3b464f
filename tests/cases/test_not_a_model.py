"""Names and folders that are no whole model, and tokens that a model has no embedding for: the true cause is named."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from families import build
from gguf import GGUFWriter
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import longrope as lr
from longrope.cli.main import app
from longrope.errors import LongRopeError
from longrope.models.load import load, load_config, load_tokenizer
from longrope.rope import Rope

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
PROMPT = PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
LENGTH = 128
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads a deprecated attribute


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    build("llama").save_pretrained("base")
    families.tokenizer().save_pretrained("base")
    return Path("base")


def save_adapter(folder: Path, config: Any = LORA, *, base: str = "base") -> None:
    torch.manual_seed(0)
    get_peft_model(build("llama"), config).save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": base}))


def test_an_adapter_beside_merged_weights(base: Path) -> None:
    """transformers would add the adapter to the merged weights once more."""
    save_adapter(base)
    rope = Rope.of(build("llama"))
    Path("f.json").write_text(lr.Extension.of(rope, lr.scheme("pi", rope, 512)).to_json())
    result = CliRunner().invoke(app, ["export", "base", "--factors", "f.json", "-o", "out"])
    assert result.exit_code == 2
    assert not Path("out").exists()
    with pytest.raises(LongRopeError, match=r"LoRA adapter of the model base.*already, remove adapter_config.json"):
        load("base")


def test_a_prompt_cannot_be_merged(base: Path) -> None:
    save_adapter(Path("adapter"), PROMPT)
    with pytest.raises(
        LongRopeError, match=r"\(PROMPT_TUNING\) of the model base.*cannot be merged\. Give the base model"
    ):
        load("adapter")


def test_an_adapter_in_gguf(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "lora.gguf", "llama")
    writer.add_type("adapter")
    writer.add_tensor("blk.0.attn_q.weight.lora_a", np.zeros((4, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for use in (load, load_config, lr.load_factors):
        with pytest.raises(LongRopeError, match=r"GGUF file holds a LoRA adapter.*llama-export-lora -m BASE.gguf"):
            use(str(tmp_path / "lora.gguf"))


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        ({"checkpoint-5/config.json": "{}"}, "no config.json in this folder. Give folder/checkpoint-5"),
        ({"a.gguf": ""}, "no config.json in this folder. Give folder/a.gguf"),
        ({"checkpoint-7/adapter_config.json": "{}"}, "no config.json in this folder. Give folder/checkpoint-7"),
        ({"model.safetensors": ""}, "no config.json in this folder. Give a folder that save_pretrained wrote"),
    ],
)
def test_a_folder_without_a_config_says_what_it_holds(
    holds: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in holds.items():
        path = Path("folder", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    with pytest.raises(LongRopeError, match=message):
        load("folder")


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("tinny", "tiny"),
        ("tiny/", "tiny"),
        ("bsae", "base"),
        ("./bsae", "./base"),
        ("{}/Bsae-1B", "{}/Base-1B"),
        ("a/bse", "a/base"),
    ],
)
def test_a_misspelt_name_is_mended_before_the_hub_is_named(base: Path, name: str, suggested: str) -> None:
    for folder in (Path("Base-1B"), Path("a/base")):
        shutil.copytree(base, folder)
    here = str(Path.cwd())
    name, suggested = name.replace("{}", here), suggested.replace("{}", here)
    with pytest.raises(LongRopeError, match="there is no such folder") as raised:
        load(name)
    before, _, after = str(raised.value).partition(f"id you mean {suggested!r}?")
    assert after or str(raised.value).endswith("?")
    assert "hub" not in before


def test_a_name_like_no_other_is_taken_for_a_hub_id(base: Path) -> None:
    message = r"no such folder or built-in model. Is it a hub id.*Run hf download org/some-model --local-dir FOLDER"
    with pytest.raises(LongRopeError, match=message):
        load("org/some-model")


def test_an_adapter_on_the_hub_is_named_with_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's cache holds its config, as after any attempt to open it."""
    cache, commit = tmp_path / "models--org--some-lora", "0" * 40
    fields = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    for path, text in (("refs/main", commit), (f"snapshots/{commit}/adapter_config.json", fields)):
        (cache / path).parent.mkdir(parents=True, exist_ok=True)
        (cache / path).write_text(text)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = (
        r"'org/some-lora': adapter_config.json says .* of the model org/base.*hf download org/some-lora --local-dir"
    )
    with pytest.raises(LongRopeError, match=message):
        load("org/some-lora")


SENTENCEPIECE = b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
TIKTOKEN = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(64))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.model": SENTENCEPIECE}, "needs the package sentencepiece.*pip install sentencepiece"),
        ({"spiece.model": SENTENCEPIECE}, "needs the package sentencepiece.*pip install sentencepiece"),
        ({"tokenizer.model": TIKTOKEN}, "needs the package tiktoken.*pip install tiktoken"),
        ({}, "there is no tokenizer in this folder"),
    ],
    ids=["SentencePiece", "T5", "tiktoken", "none"],
)
def test_what_the_tokenizer_needs_is_named(base: Path, files: dict[str, bytes], message: str) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).unlink()
    classes = {"spiece.model": "T5Tokenizer"}
    for name, content in files.items():
        (base / name).write_bytes(content)
        (base / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": classes.get(name, "LlamaTokenizer")})
        )
    for use in (load, load_tokenizer):
        with pytest.raises(LongRopeError, match=message) as raised:
            use("base")
        assert str(raised.value).count("pip install") == bool(files)


def with_added_tokens(count: int = 2) -> PreTrainedTokenizerFast:
    tokenizer = families.tokenizer()
    tokenizer.add_tokens([f"<|{i}|>" for i in range(count)], special_tokens=True)
    return tokenizer


def write_texts(folder: Path, end: str = "") -> Path:
    folder.mkdir()
    for i in range(12):
        words = np.random.default_rng(i).integers(3, families.VOCABULARY, 300 + i)
        (folder / f"{i}.txt").write_text(f"{end} " + " ".join(f"t{word}" for word in words))
    return folder


BEYOND = {
    "eval": ["--lengths", "64,128", "--data", "chats", "--schemes", "none", "--documents", "1"],
    "search": ["-l", "128", "--data", "chats", "--search-documents", "1", "--held-out-documents", "1", "-o", "run"],
    "search on workers": ["-l", "128", "--data", "chats", "--held-out-documents", "1", "--workers", "2", "-o", "run"],
    "extend": ["plan.toml", "-o", "run"],
    "generate": ["<|1|> t5", "--factors", "f.json", "--max-new-tokens", "5"],
}


@pytest.mark.parametrize("command", BEYOND)
def test_tokens_beyond_the_embedding_are_refused_before_any_pass(base: Path, command: str) -> None:
    with_added_tokens().save_pretrained(base)
    write_texts(Path("chats"), "<|1|>")
    rope = Rope.of(load_config("base"))
    Path("f.json").write_text(lr.Extension.of(rope, lr.scheme("pi", rope, 512)).to_json())
    Path("plan.toml").write_text(
        "version = 1\n[data]\nsource = 'chats'\n[[stages]]\nlength = 128\nfactors = 'yarn'\n"
        "[stages.finetune]\ntokens = 256\nbatch = 1\n"
    )
    result = CliRunner().invoke(app, [command.split()[0], "base", *BEYOND[command]])
    assert result.exit_code == 2, result.output
    assert "makes token 129 ('<|1|>') of 130 tokens" in result.stderr
    assert "vocab_size = 128" in result.stderr
    assert "resize_token_embeddings" in result.stderr


def test_python_doors_refuse_tokens_beyond_the_embedding(base: Path) -> None:
    with_added_tokens().save_pretrained(base)
    chats = str(write_texts(Path("chats"), "<|1|>"))
    model, tokenizer = load("base")
    extension = lr.Extension.of(Rope.of(model), lr.scheme("pi", Rope.of(model), 512))
    options = lr.SearchOptions(search_documents=1, held_out_documents=1)
    with pytest.raises(LongRopeError, match="vocab_size = 128"):
        lr.evaluate(model, tokenizer, lengths=[LENGTH], data=chats, options=lr.EvalOptions(documents=1))
    with pytest.raises(LongRopeError, match="vocab_size = 128"):
        lr.search(model, tokenizer, length=LENGTH, data=chats, options=options)
    with pytest.raises(LongRopeError, match=r"sequences\[0\]\[2\] = 128: beyond the model's vocabulary"):
        lr.perplexity(model, [[3, 4, 128]], lengths=[3])
    with lr.generating(model, extension), pytest.raises(LongRopeError, match=r"input_ids: .* token 130.*vocab_size"):
        model.generate(torch.tensor([[3, 130]]), max_new_tokens=2)


def test_a_larger_tokenizer_whose_new_tokens_do_not_occur_is_fine(base: Path) -> None:
    with_added_tokens(500).save_pretrained(base)
    texts = write_texts(Path("texts"))
    options = lr.EvalOptions(documents=1)
    assert lr.evaluate("base", lengths=[LENGTH], data=str(texts), options=options).lengths == (LENGTH,)
