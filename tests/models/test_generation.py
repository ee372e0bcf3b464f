"""Generation across L0: what comes from the cache is what the uncached model computes, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import families
import pytest
import torch
from families import L0, build, config, from_config, logits, tokens
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, TextStreamer
from transformers.generation.streamers import BaseStreamer

from longrope.data.stdlib import stdlib_documents
from longrope.errors import LongRopeError
from longrope.export.hf_config import config_fields
from longrope.models.cache import cache_argument
from longrope.models.generation import POLICIES, fill, generating
from longrope.models.growing_cache import growing_cache
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension, Scaling
from longrope.schemes import scheme

LENGTH = 256
each_policy = pytest.mark.parametrize("policy", POLICIES)


def extension_of(model: PreTrainedModel) -> Extension:
    """Two sets that both differ from plain RoPE."""
    rope = Rope.of(model)
    short = Scaling([1.0 + 0.05 * i for i in range(rope.dim // 2)], attention_factor=1.02)
    return Extension(rope=rope, short=short, long=scheme("yarn", rope, LENGTH), length=LENGTH)


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build("llama")


def run(model: PreTrainedModel, ids: Tensor, policy: str = "pin", **options: object) -> Tensor:
    with generating(model, extension_of(model), policy):
        return model.generate(ids, **{"do_sample": False, "eos_token_id": None, **options})


def wanted(extension: Extension, policy: str, prompt: int, new: int, length: int) -> Scaling:
    """The rule in other words: the factors under which the next token of a text of some length is computed."""
    if policy == "static":
        return extension.long
    if policy == "switch":
        return extension.long if length > L0 else extension.short
    return extension.long if prompt + new > L0 else extension.short


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in rows])
    return ids, (ids != 0).long()


@pytest.mark.parametrize(
    ("policy", "family"),
    [("switch", family) for family in families.FAMILIES]
    + [(p, f) for p in ("pin", "static") for f in ("llama", "qwen3")],
)
def test_each_step_is_what_the_uncached_model_computes(policy: str, family: str) -> None:
    model = build(family)
    extension, prompt, new = extension_of(model), L0 - 3, 8  # texts of L0 - 3 … L0 + 4 tokens
    x = tokens(1, prompt)
    made = run(model, x, policy, max_new_tokens=new, output_logits=True, return_dict_in_generate=True)
    assert made.sequences.shape == (1, prompt + new)
    uncached = {}
    for scaling in (extension.short, extension.long):
        with patch(model, scaling):
            uncached[scaling] = logits(model, made.sequences)  # at each position, of the text up to it
    for step, from_cache in enumerate(made.logits):
        length = prompt + step
        expected = uncached[wanted(extension, policy, prompt, new, length)][:, length - 1]
        torch.testing.assert_close(from_cache, expected, rtol=0, atol=5e-4)
        assert made.sequences[0, length] == from_cache.argmax()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_transformers_own_dual_sets_do_mix_in_the_cache(family: str) -> None:
    """The fault that all this is for: without it, the test above would pass with nothing done."""
    plain = build(family)
    extension = extension_of(plain)
    sets = {"short_factor": list(extension.short.factors), "long_factor": list(extension.long.factors)}
    rope = {"rope_type": "longrope", "rope_theta": plain.config.rope_parameters["rope_theta"], **sets}
    rope |= {"original_max_position_embeddings": L0, "factor": LENGTH / L0, "attention_factor": 1.0}
    theirs = from_config(config(family, rope_parameters=rope, max_position_embeddings=LENGTH))
    x = tokens(1, L0)
    options = {"do_sample": False, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    made = theirs.generate(x, max_new_tokens=2, **options)
    before, after = (
        (made.logits[step] - logits(theirs, made.sequences[:, : L0 + step])[:, -1]).square().mean().sqrt()
        / made.logits[step].square().mean().sqrt()
        for step in (0, 1)
    )
    assert before < 1e-3
    assert after > 0.2


@each_policy
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral"])
def test_a_mixed_batch_is_its_rows_one_by_one(family: str, policy: str) -> None:
    model, new = build(family), 8
    rows = [tokens(1, length)[0] for length in (9, L0 - 8, L0 - 7, L0 - 1, L0, L0 + 1, L0 + 20)]
    ids, mask = padded(rows)
    alone = torch.stack([run(model, row[None], policy, max_new_tokens=new)[0, -new:] for row in rows])
    for options in (
        {"attention_mask": mask},
        {"attention_mask": mask, "prefill_chunk_size": 7},
        {"prefill_chunk_size": 7},  # the mask from the padding tokens
    ):
        together = run(model, ids, policy, max_new_tokens=new, pad_token_id=0, **options)
        assert torch.equal(together[:, -new:], alone), options


@each_policy
@pytest.mark.parametrize("prompt", [L0 - 5, L0 - 1, L0, L0 + 1, 150])
def test_a_prompt_in_chunks_is_the_prompt_at_once(llama: PreTrainedModel, policy: str, prompt: int) -> None:
    options = {"max_new_tokens": 9, "output_logits": True, "return_dict_in_generate": True}
    once = run(llama, tokens(1, prompt), policy, **options)
    chunks = run(llama, tokens(1, prompt), policy, **options, prefill_chunk_size=10)
    assert torch.equal(once.sequences, chunks.sequences)
    torch.testing.assert_close(torch.stack(once.logits), torch.stack(chunks.logits), rtol=0, atol=5e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.8},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"do_sample": True, "num_return_sequences": 3},
        {"repetition_penalty": 1.3},
        {"cache_implementation": "static", "disable_compile": True},
    ],
    ids=str,
)
@each_policy
def test_every_way_of_choosing_tokens(llama: PreTrainedModel, policy: str, options: dict[str, object]) -> None:
    """Against the uncached model, which needs no policy for `switch`: an extension chooses by each row's length."""
    ids, mask = padded([tokens(1, length)[0] for length in (L0 - 10, L0 - 4)])
    common = {"attention_mask": mask, "max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": None, **options}
    torch.manual_seed(3)
    made = run(llama, ids, policy, **common)
    extension, copies = extension_of(llama), made.shape[0] // 2
    ways = {"switch": extension, "static": extension.long, "pin": [extension.short] * copies}
    if policy == "pin":
        copies = max(options.get("num_beams", 1), options.get("num_return_sequences", 1))
        ways["pin"] = [extension.short] * copies + [extension.long] * copies
    common.pop("cache_implementation", None)
    torch.manual_seed(3)
    with patch(llama, ways[policy]):
        assert torch.equal(made, llama.generate(ids, use_cache=False, **{"do_sample": False, **common}))


@each_policy
def test_rows_that_finish_stay_finished(llama: PreTrainedModel, policy: str) -> None:
    ids, mask = padded([tokens(1, length)[0] for length in (L0 - 6, L0 - 3, L0 - 1)])
    options = {"attention_mask": mask, "max_new_tokens": 14, "pad_token_id": 0}
    free = run(llama, ids, policy, **options)
    stop = free[0, ids.shape[1] + 2].item()  # the first row stops after three tokens
    made = run(llama, ids, policy, **options, eos_token_id=stop)
    for row, whole in zip(made[:, ids.shape[1] :].tolist(), free[:, ids.shape[1] :].tolist(), strict=True):
        end = whole.index(stop) + 1 if stop in whole else len(whole)
        assert row == (whole[:end] + [0] * len(whole))[: len(row)]
    assert made[0, ids.shape[1] :].tolist().count(0) >= 3


class Heard(BaseStreamer):
    def __init__(self) -> None:
        self.values: list[int] = []
        self.ends = 0

    def put(self, value: Tensor) -> None:
        self.values += value.flatten().tolist()

    def end(self) -> None:
        self.ends += 1


@each_policy
def test_a_streamer_sees_each_token_once(llama: PreTrainedModel, policy: str) -> None:
    heard = Heard()
    made = run(llama, tokens(1, L0 - 4), policy, max_new_tokens=10, streamer=heard)
    assert heard.values == made[0].tolist()
    assert heard.ends == 1


def test_a_text_streamer(llama: PreTrainedModel, capsys: pytest.CaptureFixture[str]) -> None:
    words = families.tokenizer()
    made = run(llama, tokens(1, L0), "switch", max_new_tokens=5, streamer=TextStreamer(words, skip_prompt=True))
    assert capsys.readouterr().out.split() == [f"t{token}" for token in made[0, L0:]]


def test_pin_follows_max_length_and_the_generation_config(llama: PreTrainedModel) -> None:
    x = tokens(1, L0 - 10)
    short, long = (run(llama, x, max_new_tokens=new) for new in (10, 11))
    assert not torch.equal(short, long[:, :-1])
    assert torch.equal(run(llama, x, max_length=L0), short)
    assert torch.equal(run(llama, x, max_length=L0 + 1), long)
    assert torch.equal(run(llama, x, max_new_tokens=10, max_length=L0 + 1), short)
    given = GenerationConfig(max_length=L0 + 1, do_sample=False)
    with generating(llama, extension_of(llama)):
        assert torch.equal(llama.generate(x, given, eos_token_id=None), long)
    assert torch.equal(run(llama, x)[:, : L0 + 1], long)  # transformers' default: 20 new tokens
    assert run(llama, tokens(1, 150)).shape == (1, 170)


@each_policy
@pytest.mark.parametrize("make_cache", [DynamicCache, growing_cache])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_cache_can_be_kept_from_one_call_to_the_next(
    family: str, policy: str, make_cache: Callable[..., DynamicCache]
) -> None:
    """Also for Phi-3, whose own code drops the cache at L0."""
    model, x = build(family), tokens(1, L0 - 6)
    cache = make_cache(config=model.config)
    layer_types = [type(layer) for layer in cache.layers]
    cached = {cache_argument(model): cache}
    first = run(model, x, policy, max_new_tokens=9, **cached)
    assert cache.get_seq_length() == L0 + 2
    with patch(model, extension_of(model).long):
        torch.testing.assert_close(cache.layers[1].values, fresh(model, first[:, :-1]), rtol=0, atol=5e-4)
    longer = torch.cat([first, tokens(1, 20)], dim=1)
    alone = run(model, longer, policy, max_new_tokens=9)
    assert torch.equal(run(model, longer, policy, max_new_tokens=9, **cached), alone)
    assert cache.get_seq_length() == longer.shape[1] + 8
    assert [type(layer) for layer in cache.layers] == layer_types


def fresh(model: PreTrainedModel, x: Tensor) -> Tensor:
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=x, use_cache=True, **{cache_argument(model): cache})
    return cast("Tensor", cache.layers[1].values)


def test_prompt_lookup_works_where_the_factors_stay(llama: PreTrainedModel) -> None:
    x = tokens(1, 20).repeat(1, 3)
    for policy in ("pin", "static"):
        options = {"max_new_tokens": 12, "eos_token_id": 2}
        assert torch.equal(
            run(llama, x, policy, **options, prompt_lookup_num_tokens=3), run(llama, x, policy, **options)
        )


def test_filling_a_cache_in_chunks(llama: PreTrainedModel) -> None:
    ids, mask = padded([tokens(1, 30)[0], tokens(1, 71)[0]])
    once, chunks, positions = DynamicCache(), DynamicCache(), (mask.cumsum(-1) - 1).clamp(min=0)
    given, real = {"attention_mask": mask, "position_ids": positions}, mask[:, None].bool().expand(-1, 2, -1)
    assert list(fill(llama, ids, once, **given)) == [71]
    assert list(fill(llama, ids[:, :40], chunks, chunk=25, **given)) == [25, 40]
    assert list(fill(llama, ids, chunks, chunk=25, **given)) == [65, 71]  # goes on where it is
    for one, other in zip(once.layers, chunks.layers, strict=True):
        torch.testing.assert_close(one.keys[real], other.keys[real])
    torch.testing.assert_close(once.layers[1].values[1:], fresh(llama, ids[1:]))
    torch.testing.assert_close(once.layers[1].values[:1, :, 41:], fresh(llama, ids[:1, 41:]))


@each_policy
def test_afterwards_the_model_is_what_it_was(llama: PreTrainedModel, policy: str) -> None:
    x = tokens(1, L0 + 3)
    before, state = logits(llama, x), dict(vars(llama))
    modules = [(name, id(module)) for name, module in llama.named_modules()]
    generate = llama.generate
    with generating(llama, extension_of(llama), policy):
        assert torch.equal(logits(llama, x), before)  # only generate is rescaled
        llama.generate(tokens(1, L0 - 1), max_new_tokens=4, pad_token_id=0)
        with pytest.raises(ZeroDivisionError):
            llama.generate(tokens(1, L0 - 1), max_new_tokens=4, pad_token_id=0, stopping_criteria=[failing])
        assert torch.equal(logits(llama, x), before)
    with pytest.raises(KeyboardInterrupt), generating(llama, extension_of(llama), policy):
        raise KeyboardInterrupt
    assert vars(llama) == state
    assert llama.generate == generate
    assert [(name, id(module)) for name, module in llama.named_modules()] == modules
    assert torch.equal(logits(llama, x), before)


def failing(ids: Tensor, scores: object) -> Tensor:
    raise ZeroDivisionError


def test_the_inner_one_counts(llama: PreTrainedModel) -> None:
    x, extension = tokens(1, L0 - 4), extension_of(llama)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    short, long = run(llama, x, "pin", **options), run(llama, x, "static", **options)
    assert not torch.equal(short, long)
    with generating(llama, extension, "static"):
        with generating(llama, extension, "pin"):
            assert torch.equal(llama.generate(x, **options), short)
        assert torch.equal(llama.generate(x, **options), long)
    assert "generate" not in vars(llama)


def test_a_generate_of_the_instances_own_comes_back() -> None:
    model = build("llama")
    model.generate = own = lambda *args, **kwargs: "mine"
    run(model, tokens(1, 5), max_new_tokens=1)
    assert model.generate is own


REFUSED = {
    "too long": ({"max_new_tokens": 5}, "252 tokens of prompt and max_new_tokens = 5 make 257, above"),
    "too long by max_length": ({"max_length": LENGTH + 1}, "max_new_tokens = 5 make 257, above .* length = 256"),
    "no ids": ({"inputs_embeds": torch.zeros(1, 3, 64)}, "input_ids: missing, empty or not"),
}


@each_policy
@pytest.mark.parametrize("case", REFUSED)
def test_refusals(llama: PreTrainedModel, policy: str, case: str) -> None:
    options, said = REFUSED[case]
    with pytest.raises(LongRopeError, match=said):
        run(llama, None if "inputs_embeds" in options else tokens(1, LENGTH - 4), policy, **options)
    assert run(llama, tokens(1, LENGTH - 4), policy, max_new_tokens=4).shape == (1, LENGTH)


def test_padding_does_not_count(llama: PreTrainedModel) -> None:
    ids, mask = padded([tokens(1, LENGTH - 20)[0], tokens(1, LENGTH - 4)[0]])
    assert run(llama, ids, attention_mask=mask, max_new_tokens=4, pad_token_id=0).shape == (2, LENGTH)
    alone = run(llama, ids[:1], attention_mask=mask[:1], max_new_tokens=20, pad_token_id=0)
    assert alone.shape == (1, LENGTH + 16)


def test_what_switch_cannot_do(llama: PreTrainedModel) -> None:
    with pytest.raises(LongRopeError, match="'switch' cannot do assisted generation or prompt lookup; use pin"):
        run(llama, tokens(1, 10), "switch", prompt_lookup_num_tokens=3)
    cached: dict[str, Any] = {cache_argument(llama): SimpleNamespace()}
    with pytest.raises(LongRopeError, match="'switch' needs the whole text as input_ids"):
        run(llama, tokens(1, 10), "switch", attention_mask=torch.ones(1, 20), **cached)


@pytest.mark.parametrize("shape", [(0, 5), (1, 0)])
def test_prompts_without_tokens_are_refused(llama: PreTrainedModel, shape: tuple[int, int]) -> None:
    with pytest.raises(LongRopeError, match="input_ids: missing, empty or not"):
        run(llama, torch.zeros(shape, dtype=torch.long), max_new_tokens=2)


def test_bad_arguments(llama: PreTrainedModel) -> None:
    with (
        pytest.raises(LongRopeError, match="policy = 'dynamic' is unknown; choose one of pin, switch, static"),
        generating(llama, extension_of(llama), "dynamic"),
    ):
        pass
    with pytest.raises(LongRopeError, match=r"^length = None"), generating(llama, Scaling([2.0] * 8)):
        pass
    other = Rope(dim=16, base=500.0, original_length=L0)
    with (
        pytest.raises(LongRopeError, match=r"extension.rope = .*500.*: the model has .*10000"),
        generating(llama, Extension.of(other, scheme("pi", other, LENGTH))),
    ):
        pass


def test_what_tiny_loses_when_the_sets_mix() -> None:
    """Real text, a token at a time; docs/generation.md has the loss of more of it."""
    model, tokenizer = load("tiny", dtype="float32")
    rope = Rope.of(model)
    extension = Extension.of(rope, replace(scheme("heuristic", rope, 2048), attention_factor=1.0))
    theirs = from_config(type(model.config).from_dict(config_fields(model.config.to_dict(), extension)))
    theirs.load_state_dict(model.state_dict())
    texts = [text[:8000] for _, text in stdlib_documents(unseen=True) if len(text) > 9000][:4]
    x = torch.tensor([ids[:320] for ids in tokenizer(texts, verbose=False)["input_ids"]])
    with patch(model, extension.long):
        uncached = loss(logits(model, x)[:, 256:-1], x)
    with generating(model, extension, "switch"):
        assert fed_loss(model, x) == pytest.approx(uncached, abs=1e-4)
    assert fed_loss(theirs, x) > uncached + 1


def loss(logits: Tensor, x: Tensor) -> float:
    """Of the tokens that are predicted from texts of more than 256 tokens."""
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), x[:, 257:]).item()


def fed_loss(model: PreTrainedModel, x: Tensor) -> float:
    """Through ``generate``, which goes on with the text whatever the model says."""
    given = {"attention_mask": torch.ones_like(x[:, :250]), "max_new_tokens": x.shape[1] - 250, "eos_token_id": None}
    feed = [lambda ids, scores: torch.nn.functional.one_hot(x[:, ids.shape[1]], scores.shape[1]).float()]
    options = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True, "logits_processor": feed}
    made = model.generate(x[:, :250], **given, **options)
    assert torch.equal(made.sequences, x)
    return loss(torch.stack(made.logits[7:], dim=1), x)
