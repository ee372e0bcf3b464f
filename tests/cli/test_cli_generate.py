"""``longrope generate`` and ``longrope chat``: what they say is what ``generate`` and the uncached model say."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import all_types
import numpy as np
import pytest
import torch
import typer
from conftest import Result, byte_bpe
from families import L0, build
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from longrope.cli.chat_cache import ChatCache
from longrope.cli.chat_session import ChatModel
from longrope.cli.chat_stream import Stream
from longrope.cli.main import guarded
from longrope.data.key_value_lines import make_key_value_text
from longrope.data.stdlib import stdlib_documents
from longrope.models.generation import POLICIES, generating
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}!{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
each_policy = pytest.mark.parametrize("policy", POLICIES)
Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, object]:
    return load("tiny")


@pytest.fixture(scope="module")
def heuristic(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For tiny, 2,048 tokens."""
    return write(extension_of(tiny[0], 2048), tmp_path_factory.mktemp("factors") / "heuristic.json")


@pytest.fixture(scope="module")
def small(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the random model, 512 tokens, two sets that both differ from plain RoPE."""
    return write(two_sets(AutoModelForCausalLM.from_pretrained(model)), tmp_path_factory.mktemp("factors") / "two.json")


@pytest.fixture(scope="module")
def templated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "chatty"
    build("llama", num_hidden_layers=2, vocab_size=300).save_pretrained(folder)
    tokenizer = byte_bpe()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def write(extension: Extension, path: Path) -> Path:
    path.write_text(extension.to_json())
    return path


def extension_of(model: PreTrainedModel, length: int) -> Extension:
    return Extension.of(Rope.of(model), scheme("heuristic", Rope.of(model), length))


def two_sets(model: PreTrainedModel, length: int = 512) -> Extension:
    rope = Rope.of(model)
    short = Scaling([1.0 + 0.05 * i for i in range(rope.dim // 2)])
    return Extension(rope=rope, short=short, long=scheme("yarn", rope, length), length=length)


@pytest.fixture
def chat(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs ``longrope chat`` on some lines."""

    def run(lines: str, *args: object) -> Result:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return cli("chat", *args)

    return run


def uncached(model: PreTrainedModel, extension: Extension, policy: str, ids: list[int], new: int) -> list[int]:
    """Greedy, by the whole text at every step, under factors that stand in the rule of each policy."""
    pinned = extension.long if len(ids) + new > extension.rope.original_length else extension.short
    factors = {"pin": pinned, "static": extension.long, "switch": extension}[policy]
    x, options = torch.tensor([ids]), {"max_new_tokens": new, "do_sample": False, "use_cache": False}
    with patch(model, factors):
        made = model.generate(x, attention_mask=torch.ones_like(x), **options)
    return made[0, len(ids) :].tolist()


@each_policy
def test_generate_is_what_the_model_generates(cli: Cli, tiny, heuristic: Path, policy: str) -> None:
    model, tokenizer = tiny
    prompt = "".join(f"x_{i} = {i}\n" for i in range(34)) + "def main"
    result = cli("generate", "tiny", prompt, "--factors", heuristic, "--max-new-tokens", 20, "--policy", policy)
    assert result.code == 0, result.err
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    assert ids.shape[1] < 256 < ids.shape[1] + 20
    with generating(model, extension_of(model, 2048), policy):
        made = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    assert result.out == tokenizer.decode(made, skip_special_tokens=True) + "\n"
    sets = {"pin": "long", "static": "long", "switch": "short, then long"}[policy]
    assert f"{ids.shape[1]} tokens, at most 20 new: {sets} factors (policy {policy}, L0 = 256, L = 2,048)" in result.err
    assert "20 new tokens in " in result.err


def test_the_note_on_a_prompt_of_one_token(cli: Cli, heuristic: Path) -> None:
    assert "1 token, at most 1 new: " in cli("generate", "tiny", "x", "--factors", heuristic, "--max-new-tokens", 1).err


def test_json_and_sampling(cli: Cli, tiny, heuristic: Path) -> None:
    model, tokenizer = tiny
    options = ("--factors", heuristic, "--max-new-tokens", 12, "--temperature", 0.7, "--seed", 5)
    result = cli("generate", "tiny", "import os", *options, "--json")
    record, ids = result.json, tokenizer("import os", return_tensors="pt")["input_ids"]
    torch.manual_seed(5)
    made = model.generate(ids, max_new_tokens=12, do_sample=True, temperature=0.7)[0, ids.shape[1] :]
    assert record["text"] == tokenizer.decode(made, skip_special_tokens=True)
    assert (record["tokens"], record["prompt_tokens"]) == (len(made), ids.shape[1])
    assert (record["factors"], record["policy"]) == ("short", "pin")
    assert 0 < record["first_token_seconds"] < record["seconds"] < 60
    assert record["tokens_per_second"] > 0


def test_a_line_of_a_long_file_is_recalled(cli: Cli, tiny, heuristic: Path, tmp_path: Path) -> None:
    """Three of them, planted at the beginning of 500 tokens; without the extension they are beyond reach."""
    model, tokenizer = tiny
    plain = write(Extension.of(Rope.of(model), Scaling([1.0] * 32, length=2048)), tmp_path / "plain.json")
    texts = [text for _, text in stdlib_documents(unseen=True) if len(text) > 9000]
    found = {heuristic: 0, plain: 0}
    for trial in range(3):
        document = np.array(tokenizer(texts[trial][:8000], verbose=False)["input_ids"])
        rng = np.random.default_rng(trial)
        recall = make_key_value_text(document, tokenizer, rng=rng, length=500, depth=0.1)
        text = tokenizer.decode(recall.tokens[: np.flatnonzero(recall.answers)[0]])
        (tmp_path / "book.txt").write_text(text[: text.rindex("\n")])
        answer = tokenizer.decode(recall.tokens[recall.answers]).strip()
        for factors in found:
            options = ("--factors", factors, "--file", tmp_path / "book.txt", "--max-new-tokens", 9)
            result = cli("generate", "tiny", text[text.rindex("\n") + 1 :], *options)
            assert result.code == 0, result.err
            found[factors] += result.out.strip().startswith(answer)
    assert found == {heuristic: 3, plain: 0}


def test_a_file_is_cut_to_what_fits(cli: Cli, model: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("été the cat sat on a mat " * 200)
    options = ("--factors", small, "--file", tmp_path / "book.txt", "--max-new-tokens", 12)
    result = cli("generate", model, "and if", *options, "--json")
    assert 512 - 12 - 4 <= result.json["prompt_tokens"] <= 512 - 12
    assert "tokens, of which the first " in result.err
    (tmp_path / "book.txt").write_text("the cat sat")
    fits = cli("generate", model, "and if", *options, "--json")
    assert "of which" not in fits.err
    asked = byte_bpe()("the cat sat\n\nand if")["input_ids"]
    assert fits.json["prompt_tokens"] == len(asked)
    alone = cli("generate", model, *options, "--json")
    assert alone.json["prompt_tokens"] == len(byte_bpe()("the cat sat")["input_ids"])


@each_policy
def test_turns_of_a_chat_are_those_of_the_uncached_model(chat: Cli, heuristic: Path, policy: str) -> None:
    """Across L0 in the second turn."""
    model, tokenizer = load("tiny", dtype="float32")
    said = ["import os, sys  # " + " ".join(f"m{i}" for i in range(84)), "def main(argv):", "x = 1"]
    options = ("tiny", "--factors", heuristic, "--max-new-tokens", 9, "--policy", policy, "--dtype", "float32")
    result = chat("\n\n".join(said), *options)
    assert result.code == 0, result.err
    text, answers, lengths = "", [], []
    for line in said:
        text += ("\n" if text else "") + line
        ids = tokenizer(text)["input_ids"]
        answers.append(tokenizer.decode(uncached(model, extension_of(model, 2048), policy, ids, 9)))
        text += answers[-1]
        lengths.append(len(ids))
    assert lengths[0] + 9 < 256 < lengths[1] + 9
    assert result.out == "".join(answer + "\n" for answer in answers)
    assert f"[{lengths[2]} tokens, long factors; 9 new tokens in" in result.err


@each_policy
def test_a_chat_template_is_used(
    chat: Cli, cli: Cli, templated: Path, small: Path, policy: str, tmp_path: Path
) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on a mat " * 12)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(templated), AutoTokenizer.from_pretrained(templated)
    options = (templated, "--factors", small, "--max-new-tokens", 9, "--policy", policy)
    result = chat("if x\nelse y\n", *options, "--file", tmp_path / "book.txt")
    assert result.code == 0, result.err
    text, answers = "", []
    for line in [f"{(tmp_path / 'book.txt').read_text().rstrip()}\n\nif x", "else y"]:
        text += f"<user>{line}!<assistant>"
        made = uncached(model, two_sets(model), policy, tokenizer(text)["input_ids"], 9)
        answers.append(tokenizer.decode(made, skip_special_tokens=True))
        text += answers[-1] + "!"
    assert result.out == "".join(answer + "\n" for answer in answers)
    alone = cli("generate", *options, "if x", "--json").json
    assert alone["prompt_tokens"] == len(tokenizer("<user>if x!<assistant>")["input_ids"])


def test_reset_exit_and_a_turn_that_does_not_fit(chat: Cli, model: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on a mat " * 20)
    options = (model, "--factors", small, "--max-new-tokens", 9)
    lines = f"if x\nelse\n{'z ' * 600}\n/reset\n\nif x\n/exit\nif y\n"
    result = chat(lines, *options, "--file", tmp_path / "book.txt")
    assert result.code == 0
    assert result.err.count(" new tokens in ") == 3
    assert "error: " in result.err
    assert "above the extension's length = 512; shorten the prompt" in result.err
    first = chat("if x\n", *options, "--file", tmp_path / "book.txt").out
    assert result.out.startswith(first)
    assert result.out.endswith(first)
    assert len(result.out) > 2 * len(first)


def test_a_file_leaves_room_for_a_chat(chat: Cli, model: Path, small: Path, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("the cat sat on a mat " * 200)
    options = ("--factors", small, "--file", tmp_path / "book.txt", "--max-new-tokens", 200, "--temperature", 1)
    result = chat("if x\n", model, *options)
    assert "of which the first 248 fit" in result.err
    assert "error" not in result.err
    assert result.out


def chat_model_of(family: str, policy: str, **fields: object) -> ChatModel:
    if family == "olmo_hybrid":
        model = all_types.build(family)
        model.resize_token_embeddings(300, mean_resizing=False)
        model.generation_config.eos_token_id = None
    else:
        model = build(family, vocab_size=300, eos_token_id=None, **fields)
    return ChatModel(model, byte_bpe(), two_sets(model), policy, exported=False)


def answered(memory: ChatCache, ids: list[int], new: int) -> list[int]:
    stream = Stream(memory.chat_model.tokenizer, quiet=True)
    memory.answer(ids, new=new, temperature=0, stream=stream)
    return stream.tokens


def ids_of(length: int, seed: int) -> list[int]:
    return torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


SLIDING = {"sliding_window": 24}
HYBRID = ("olmo_hybrid", {})  # with recurrent layers, whose state cannot go back


@each_policy
@pytest.mark.parametrize(("family", "fields"), [("llama", {}), ("phi3", {}), ("mistral", SLIDING), HYBRID])
def test_a_memory_changes_no_answer(family: str, fields: dict[str, int], policy: str) -> None:
    """Longer, shorter and other texts than those remembered, on both sides of L0."""
    chat_model = chat_model_of(family, policy, **fields)
    memory, first = ChatCache(chat_model), ids_of(40, 0)
    longer = first + answered(memory, first, 7) + ids_of(12, 1)
    across = longer + answered(memory, longer, 11) + ids_of(30, 2)
    fresh = functools.cache(lambda ids: answered(ChatCache(chat_model), [*ids], 11))
    for ids in (across, across[:70] + ids_of(20, 3), first, ids_of(5, 4), across, across):
        assert answered(memory, ids, 11) == fresh(tuple(ids))
        assert memory.cache.get_seq_length() == len(memory.ids) == len(ids) + 10


def test_what_is_remembered_is_not_read_again() -> None:
    memory, first, sizes = ChatCache(chat_model_of("llama", "static")), ids_of(200, 0), []
    model = memory.chat_model.model.base_model
    model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].shape[1]) if given["use_cache"] else None,
        with_kwargs=True,
    )
    made = answered(memory, first, 5)
    assert sizes == [199, 1, 1, 1, 1, 1]
    sizes.clear()
    answered(memory, first[:150] + made + ids_of(9, 1), 2)
    assert sizes == [13, 1, 1]


@pytest.mark.parametrize(
    ("family", "fields", "policy", "at"),
    [("llama", {}, policy, at) for policy in POLICIES for at in (1, 4, 5, 9)]
    + [(*kind, "static", at) for kind in (("mistral", SLIDING), HYBRID) for at in (1, 5)],
)
def test_an_interrupt_in_the_middle_of_a_step_spoils_nothing(
    family: str, fields: dict[str, int], policy: str, at: int
) -> None:
    """After the first layer of the two: of the prompt, or of a new token, at L0 too."""
    chat_model = chat_model_of(family, policy, **fields)
    memory, ids, calls = ChatCache(chat_model), ids_of(L0 - 3, 0), []

    def interrupt(module: object, args: object, given: dict[str, object], output: Tensor) -> None:
        calls.append(given["use_cache"])
        if calls.count(True) == at:
            raise KeyboardInterrupt

    hook = chat_model.model.base_model.layers[0].register_forward_hook(interrupt, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        answered(memory, ids, 20)
    hook.remove()
    for again in (ids + ids_of(2, 1), ids[:30]):
        assert answered(memory, again, 9) == answered(ChatCache(chat_model), again, 9)


def test_an_interrupt_names_resume_only_where_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def command(**options: object) -> None:
        raise KeyboardInterrupt

    for options, said in (
        ({"new": 9}, "interrupted\n"),
        ({"resume": False}, "interrupted; with -o, it continues with"),
    ):
        with pytest.raises(typer.Exit) as stopped:
            command(**options)
        assert stopped.value.exit_code == 130
        assert capsys.readouterr().err.startswith(said)


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_control_c_stops_an_answer_and_not_the_chat(heuristic: Path) -> None:
    command = [sys.executable, "-m", "longrope", "chat", "tiny", "--factors", heuristic, "--max-new-tokens", "1900"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*map(str, command), "--device", "cpu"], **pipes) as process:
        process.stdin.write("import os\n")
        process.stdin.flush()
        process.stdout.read(1)  # it has begun to answer
        process.send_signal(signal.SIGINT)
        out, err = process.communicate("/exit\n", timeout=60)
    assert process.returncode == 0, err
    assert "(stopped)" in err
    assert err.count(" tokens, long factors; ") == 1
    assert 0 < len(out) < 2000


def test_an_exported_checkpoint_needs_no_extension(
    cli: Cli, chat: Cli, model: Path, small: Path, exported: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    assert cli("export", model, "--factors", small, "-o", tmp_path / "static", "--mode", "static").code == 0
    for command in (cli, lambda name, *args: chat("if x = y\n", *args)):
        words = ("if x = y",) if command is cli else ()
        theirs = command("generate", tmp_path / "static", *words, "--max-new-tokens", 90)
        ours = command("generate", model, *words, "--factors", small, "--max-new-tokens", 90, "--policy", "static")
        assert theirs.code == 0, theirs.err
        assert theirs.out == ours.out
        assert "long factors" in theirs.err
    for policy in ("pin", "switch"):
        said = f"policy = '{policy}': .*one set of factors, for every length. Leave it out"
        refused(said, "generate", tmp_path / "static", "x", "--policy", policy)
    said = "holds two sets of factors, which transformers mixes in its cache; give the model that it was made from, and"
    refused(said, "generate", exported, "x")
    refused("its checkpoint carries a rope scaling", "generate", tmp_path / "static", "x", "--factors", small)


def test_an_exported_checkpoint_of_the_hub_needs_no_option(
    cli: Cli, model: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, commit = tmp_path / "models--org--long", "0" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    assert cli("export", model, "--factors", small, "-o", cache / "snapshots" / commit).code == 0
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    hub, local = (
        cli("generate", name, "if x", "--max-new-tokens", 9) for name in ("org/long", cache / "snapshots" / commit)
    )
    assert hub.code == 0, hub.err
    assert hub.out == local.out


def test_factors_are_not_advised_for_a_model_that_carries_some(
    cli: Cli, model: Path, small: Path, tmp_path: Path, refused: Callable[..., None]
) -> None:
    assert cli("export", model, "--factors", small, "-o", tmp_path / "static").code == 0
    (tmp_path / "static" / "extension.json").unlink()
    said = "--factors is missing: .*carries a rope scaling for 512 tokens, which transformers runs by itself"
    refused(said, "generate", tmp_path / "static", "x")


def test_a_plain_model_beside_its_extension_needs_no_option(cli: Cli, templated: Path, small: Path) -> None:
    given = cli("generate", templated, "x", "--factors", small, "--max-new-tokens", 90).out
    (templated / "extension.json").write_text(small.read_text())
    try:
        assert cli("generate", templated, "x", "--max-new-tokens", 90).out == given
    finally:
        (templated / "extension.json").unlink()


def test_a_scaling_will_do(cli: Cli, model: Path, tmp_path: Path) -> None:
    rope = Rope.of(AutoModelForCausalLM.from_pretrained(model))
    (tmp_path / "pi.json").write_text(scheme("pi", rope, 128).to_json())
    assert cli("generate", model, "x", "--factors", tmp_path / "pi.json", "--max-new-tokens", 100).code == 0


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_bad_input(
    refused: Callable[..., None], model: Path, small: Path, heuristic: Path, command: str, tmp_path
) -> None:
    words, full = (model, "x") if command == "generate" else (model,), ("--file", small, "--max-new-tokens", 512)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    good = ("--factors", small)
    refused("--factors is missing: a run folder or a factors file", command, *words)
    refused("cannot read the factors file", command, *words, "--factors", tmp_path / "none.json")
    refused("extension.rope = Rope.*64.*: the model has Rope", command, *words, "--factors", heuristic)
    refused("policy = 'both' is unknown; choose one of pin, switch, static", command, *words, *good, "--policy", "both")
    refused("file = .*none.txt cannot be read: No such file", command, *words, *good, "--file", tmp_path / "none.txt")
    refused("file = .*empty.txt is empty", command, *words, *good, "--file", tmp_path / "empty.txt")
    refused("file = .*binary.txt cannot be read", command, *words, *good, "--file", tmp_path / "binary.txt")
    refused("model = './no': there is no such folder", command, "./no", *words[1:], *good)
    refused("length = 512 leaves no room for the file", command, *words, *good, *full)


def test_bad_input_of_generate(refused: Callable[..., None], model: Path, small: Path) -> None:
    good = ("--factors", small)
    refused("prompt is empty, and .* is the model. Give MODEL and PROMPT, or --file", "generate", model, *good)
    refused("prompt is empty, and .* is the model. Give MODEL and PROMPT, or --file", "generate", model, "", *good)
    said = "1 tokens of prompt and --max-new-tokens 512 make 513, above the extension's length = 512; shorten"
    refused(said, "generate", model, "x", *good, "--max-new-tokens", 512)


@pytest.mark.real
def test_smollm2_answers_about_a_file_in_its_template(cli: Cli, chat: Cli, tmp_path: Path) -> None:
    factors, book = tmp_path / "factors.json", tmp_path / "book.txt"
    assert cli("scale", "smollm2", "--scheme", "heuristic", "--length", "32k", "-o", factors).code == 0
    book.write_text("The dog's name is Waldo. He lives in a red house.\n")
    options = ("--factors", factors, "--file", book, "--max-new-tokens", 20)
    result = chat("What is the dog's name?\n", "smollm2", *options)
    assert "Waldo" in result.out
