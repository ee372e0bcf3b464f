"""What a real llama.cpp computes from our GGUF files (`make test-real` compiles it)."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from families import build, tokens
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.documents import load_documents
from longrope.export.gguf.convert import export_gguf
from longrope.export.gguf.copy import extend_gguf
from longrope.export.gguf.vocabulary import BYTE_LEVEL
from longrope.formats.load_factors import load_factors
from longrope.models.load import find_gguf, load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

pytestmark = pytest.mark.real
TEXTS = [
    "Hello, World!  It's 2026;   they'll pay $1,234.50 — naïve café.\n\n\tdef f(x):\n        return x**2  # ok\n",
    "  leading spaces\r\nand 12345678 digits, 你好, мир, 🙂🙃 e\u0301 I'M",
]


def extension(model: PreTrainedModel, length: int) -> Extension:
    rope = Rope.of(model)
    long = scheme("heuristic", rope, length)
    short = [1 + 0.2 * i / len(long.factors) for i in range(len(long.factors))]
    return Extension(rope, Scaling(short, attention_factor=long.attention_factor), long, length)


def llama_logits(path: Path, ids: list[int], *, context: int, exact: bool = True) -> Tensor:
    """Logits of all tokens, ``(tokens, vocabulary)``; exact: with keys and values kept in float32."""
    from llama_cpp import Llama

    kept = {"type_k": 0, "type_v": 0} if exact else {}
    llama = Llama(str(path), n_ctx=context, n_batch=512, n_threads=1, logits_all=True, verbose=False, **kept)
    try:
        llama.eval(ids)
        return torch.from_numpy(np.array(llama.scores[: len(ids)], dtype=np.float32))
    finally:
        llama.close()


def llama_ids(path: Path, text: str) -> list[int]:
    from llama_cpp import Llama

    llama = Llama(str(path), vocab_only=True, verbose=False)
    try:
        return llama.tokenize(text.encode(), add_bos=False, special=True)
    finally:
        llama.close()


@torch.inference_mode()
def our_logits(model: PreTrainedModel, held: Extension, ids: list[int]) -> Tensor:
    with patch(model, held):
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


def difference(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).square().mean() / ours.square().mean()).sqrt().item()


def perplexity(logits: Tensor, ids: list[int]) -> float:
    return math.exp(torch.nn.functional.cross_entropy(logits[:-1].float(), torch.tensor(ids[1:])).item())


def text_ids(tokenizer: PreTrainedTokenizerFast, length: int) -> list[int]:
    text = "\n".join(document.text for document in load_documents("stdlib:unseen")[:40])
    return tokenizer(text[: 8 * length])["input_ids"][:length]


@pytest.mark.parametrize("mode", ["dual", "static"])
def test_tiny_has_the_same_logits_and_perplexity_short_and_long(mode: str, tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    made = extension(model, 2048)
    held = export_gguf(model, tokenizer, made, tmp_path / "x.gguf", mode=mode)
    assert held.short == (made.short if mode == "dual" else made.long)
    for length in (256, 2048):
        ids = text_ids(tokenizer, length)
        ours, theirs = our_logits(model, held, ids), llama_logits(tmp_path / "x.gguf", ids, context=length)
        assert difference(ours, theirs) < 1e-4
        assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=1e-4)
        assert difference(our_logits(model, Extension.of(made.rope, scheme("pi", made.rope, 2048)), ids), theirs) > 0.05


def test_the_context_size_and_not_the_text_chooses_the_set(tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")
    made, ids = extension(model, 2048), text_ids(tokenizer, 200)
    export_gguf(model, tokenizer, made, tmp_path / "x.gguf", mode="dual")
    long = Extension(made.rope, made.long, made.long, 2048)
    assert difference(our_logits(model, made, ids), llama_logits(tmp_path / "x.gguf", ids, context=256)) < 1e-4
    assert difference(our_logits(model, long, ids), llama_logits(tmp_path / "x.gguf", ids, context=512)) < 1e-4


@pytest.mark.parametrize(
    ("outtype", "most"), [("f16", 2e-3), ("bf16", 5e-3), ("q8_0", 0.02), ("q5_1", 0.2), ("q4_0", 0.5)]
)
def test_outtypes(outtype: str, most: float, tmp_path: Path) -> None:
    model, tokenizer = load("tiny", dtype="float32")  # its weights are bf16
    held = export_gguf(model, tokenizer, extension(model, 2048), tmp_path / "x.gguf", outtype=outtype)
    ids = text_ids(tokenizer, 300)
    assert difference(our_logits(model, held, ids), llama_logits(tmp_path / "x.gguf", ids, context=512)) < most


def test_llama_quantize_keeps_the_factors(tmp_path: Path) -> None:
    from llama_cpp import llama_cpp as bindings

    model, tokenizer = load("tiny", dtype="float32")
    held = export_gguf(model, tokenizer, extension(model, 2048), tmp_path / "x.gguf", outtype="f16")
    how = bindings.llama_model_quantize_default_params()
    how.ftype = bindings.LLAMA_FTYPE_MOSTLY_Q4_K_M
    source, target = str(tmp_path / "x.gguf").encode(), str(tmp_path / "q.gguf").encode()
    assert bindings.llama_model_quantize(source, target, how) == 0
    assert (tmp_path / "q.gguf").stat().st_size < 0.4 * (tmp_path / "x.gguf").stat().st_size
    ids = text_ids(tokenizer, 300)
    theirs = llama_logits(tmp_path / "q.gguf", ids, context=512)
    plain = Extension.of(held.rope, Scaling.identity(held.rope))
    assert difference(our_logits(model, held, ids), theirs) < 0.6 * difference(our_logits(model, plain, ids), theirs)


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"sliding_window": None}),
        ("phi3", {"sliding_window": None}),
    ],
)
def test_families(family: str, fields: dict, tmp_path: Path) -> None:
    model = build(family, **fields)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(generator=torch.Generator().manual_seed(0))
    _, tokenizer = load("tiny")
    model.resize_token_embeddings(len(tokenizer))
    held = export_gguf(model, tokenizer, extension(model, 512), tmp_path / "x.gguf", mode="dual")
    for length in (64, 65, 512):  # llama.cpp rounds contexts up to 256: the short set is seen through the key alone
        ids = tokens(1, length)[0].tolist()
        used = Extension(held.rope, held.long, held.long, 512)
        theirs = llama_logits(tmp_path / "x.gguf", ids, context=512)
        assert difference(our_logits(model, used, ids), theirs) < 1e-4


def test_the_original_weights_of_a_gguf_stay_and_its_perplexity_is_ours(tmp_path: Path) -> None:
    source = find_gguf("smollm2")
    assert source is not None
    model, tokenizer = load("smollm2")
    held = extend_gguf(source, extension(model, 16384), tmp_path / "x.gguf", mode="dual")
    for context, length in ((2048, 1500), (16384, 4096)):
        ids = text_ids(tokenizer, length)
        ours = our_logits(model, held if context == 2048 else Extension(held.rope, held.long, held.long, 16384), ids)
        theirs = llama_logits(tmp_path / "x.gguf", ids, context=context)
        assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=0.01)  # it rounds activations to q8
        plain = our_logits(model, Extension.of(held.rope, Scaling([1] * 32, length=16384)), ids)
        assert difference(ours, theirs) < 0.75 * difference(plain, theirs)


def test_smollm2_written_anew_is_exact(tmp_path: Path) -> None:
    model, tokenizer = load("smollm2")
    held = export_gguf(model, tokenizer, extension(model, 16384), tmp_path / "x.gguf", outtype="f32")
    ids = text_ids(tokenizer, 2500)
    ours, theirs = our_logits(model, held, ids), llama_logits(tmp_path / "x.gguf", ids, context=4096)
    assert difference(ours, theirs) < 1e-3
    assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=1e-4)
    for text in TEXTS:
        assert llama_ids(tmp_path / "x.gguf", text) == tokenizer(text)["input_ids"]


def test_the_demo_has_the_same_perplexity_short_and_long(demo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "longrope", "export", demo, "--to", "gguf", "-o", tmp_path / "x.gguf"]
    subprocess.run([*command, "--dtype", "float32"], check=True)
    held = load_factors(demo / "checkpoint")
    assert isinstance(held, Extension)
    model, tokenizer = load(str(demo / "stage-1" / "model"), dtype="float32")
    for length in (200, 2048):
        ids = text_ids(tokenizer, length)
        ours, theirs = our_logits(model, held, ids), llama_logits(tmp_path / "x.gguf", ids, context=length)
        assert perplexity(theirs, ids) == pytest.approx(perplexity(ours, ids), rel=1e-4)


def trained(cut: str, *, skip_merges: bool) -> PreTrainedTokenizerFast:
    """Byte-level BPE that cuts text by nothing, by digits, or by a pattern, first."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut in ("", "digits"))
    first = {"": [], "digits": [pre_tokenizers.Digits(individual_digits=True)]}
    split = first[cut] if cut in first else [pre_tokenizers.Split(Regex(cut), "isolated")]
    made = Tokenizer(models.BPE(ignore_merges=skip_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence([*split, level]) if split else level
    return fitted(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def fitted(made: Tokenizer, **options: object) -> PreTrainedTokenizerFast:
    text = [document.text[:50_000] for document in load_documents("stdlib:unseen")[:40]]
    made.train_from_iterator(text, trainers.BpeTrainer(vocab_size=2000, show_progress=False, **options))
    made.add_special_tokens(["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")


def from_sentencepiece() -> PreTrainedTokenizerFast:
    """As transformers makes one from SentencePiece: byte fallback, and every split of a piece among the merges."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    prepend, mark = normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")
    made.normalizer = normalizers.Sequence([prepend, mark])
    made.pre_tokenizer = pre_tokenizers.Split(Regex("(?<=[^\u2581])(?=\u2581)"), "isolated")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = json.loads(fitted(made, special_tokens=special, limit_alphabet=80).backend_tokenizer.to_str())
    vocabulary = {token: i for token, i in trained["model"]["vocab"].items() if "\n" not in token}
    vocabulary = {token: i for i, token in enumerate(sorted(vocabulary, key=vocabulary.__getitem__))}
    splits = [
        (i, token[:cut], token[cut:])
        for token, i in vocabulary.items()
        if i >= len(special)
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    bpe = models.BPE(vocabulary, [(a, b) for _, a, b in sorted(splits, key=lambda split: split[0])], unk_token="<unk>")
    bpe.byte_fallback, bpe.fuse_unk = True, True
    whole = Tokenizer(bpe)
    whole.normalizer = normalizers.Sequence([prepend, mark])
    return PreTrainedTokenizerFast(tokenizer_object=whole, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, None], ids=[*BYTE_LEVEL.values(), "sentencepiece"])
def test_llama_cpp_cuts_text_alike(kind: tuple[str, bool] | None, tmp_path: Path) -> None:
    tokenizer = from_sentencepiece() if kind is None else trained(kind[0], skip_merges=kind[1])
    model = build("llama", vocab_size=len(tokenizer) + 3)
    export_gguf(model, tokenizer, extension(model, 512), tmp_path / "x.gguf")
    for text in [*TEXTS, "".join(document.text[:3000] for document in load_documents("stdlib:unseen")[40:50])]:
        assert llama_ids(tmp_path / "x.gguf", text) == tokenizer(text)["input_ids"]
