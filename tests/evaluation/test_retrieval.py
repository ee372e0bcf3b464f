from __future__ import annotations

import math
from collections.abc import Callable

import families
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.recalls import Recall, make_recall
from longrope.data.stdlib import stdlib_documents
from longrope.evaluation import retrieval as module
from longrope.evaluation.retrieval import Retrieval, answer, retrieval
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.schemes import scheme

LENGTH = 256


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def texts(tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> np.ndarray:
    """(8, 1024): the beginnings of documents that the model never saw."""
    documents = [text[:8000] for _, text in stdlib_documents(unseen=True) if len(text) > 20_000][:8]
    ids = tiny[1](documents, add_special_tokens=False, verbose=False)["input_ids"]
    return np.stack([document[:1024] for document in ids])


def recalls(texts: np.ndarray, tokenizer: PreTrainedTokenizerFast, length: int, count: int) -> list[Recall]:
    rng = np.random.default_rng(5)
    return [make_recall(texts[i % len(texts)], tokenizer, rng=rng, length=length) for i in range(count)]


def test_right_is_what_greedy_decoding_gets(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast], texts: np.ndarray
) -> None:
    """Token by token, at the model's own length and at one where it is wrong."""
    (model, tokenizer), verdicts = tiny, []
    for recall in [*recalls(texts, tokenizer, LENGTH, 3), *recalls(texts, tokenizer, 320, 4)]:
        wanted = np.flatnonzero(recall.answers)
        prompt = torch.from_numpy(recall.tokens[: wanted[0]])[None]
        given = {"attention_mask": torch.ones_like(prompt), "pad_token_id": tokenizer.eos_token_id}
        made = model.generate(prompt, do_sample=False, max_new_tokens=len(wanted), **given)
        verdicts.append(answer(model, recall)[1])
        assert verdicts[-1] == (made[0, wanted[0] :].tolist() == recall.tokens[wanted].tolist())
    assert set(verdicts) == {False, True}


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "gpt_neox", "mixtral"])
def test_the_loss_is_the_cross_entropy_of_the_answer(family: str, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    """From the whole logits, each answer's token by those before it."""
    fields = {"gemma2": {"final_logit_softcapping": 5.0}, "cohere": {"logit_scale": 0.3}}
    model = families.build(family, vocab_size=300, **fields.get(family, {}))
    text = np.array(bytes_tokenizer("?" * 100)["input_ids"])
    recall = make_recall(text, bytes_tokenizer, rng=np.random.default_rng(0), length=100, needles=2, asked_at=0.8)
    logits, wanted = families.logits(model, torch.from_numpy(recall.tokens)[None])[0], np.flatnonzero(recall.answers)
    targets = torch.from_numpy(recall.tokens[wanted])
    loss, correct = answer(model, recall)
    assert loss == pytest.approx(cross_entropy(logits[wanted - 1], targets).item(), rel=1e-4)
    assert not correct
    best = recall.tokens.copy()  # the same where the answer is what the model says
    for place in wanted:
        best[place] = families.logits(model, torch.from_numpy(best)[None])[0, place - 1].argmax()
    assert answer(model, Recall(best, recall.answers))[1]
    best[wanted[-1]] = (best[wanted[-1]] + 1) % 300
    assert not answer(model, Recall(best, recall.answers))[1]


def test_the_head_runs_on_the_answer_only(llama: PreTrainedModel, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    text, sizes = np.full(120, 65), []
    recall = make_recall(text % 128, bytes_tokenizer, rng=np.random.default_rng(0), length=120)
    recall = Recall(recall.tokens % families.VOCABULARY, recall.answers)
    with llama.lm_head.register_forward_hook(lambda *made: sizes.append(made[2].shape[1])):
        answer(llama, recall)
    assert sizes == [recall.answers.sum()]


def test_tiny_recalls_within_its_own_length_and_not_beyond(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast], texts: np.ndarray
) -> None:
    """Unless it is told how: with YaRN's factors it does."""
    model, tokenizer = tiny
    own = retrieval(model, texts, tokenizer, LENGTH, trials=20)
    beyond = retrieval(model, texts, tokenizer, 1024, trials=5)
    with patch(model, scheme("yarn", Rope.of(model), 1024)):
        helped = retrieval(model, texts, tokenizer, 1024, trials=5)
    assert own.rate >= 0.9
    assert beyond.rate <= 0.2
    assert helped.rate >= 0.5
    assert own.loss < helped.loss < beyond.loss / 2
    assert (own.length, beyond.length) == (LENGTH, 1024)


def test_the_seed_decides(tiny: tuple[PreTrainedModel, PreTrainedTokenizerFast], texts: np.ndarray) -> None:
    one, again, other = (retrieval(tiny[0], texts, tiny[1], 128, trials=3, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one.loss != other.loss


Verdicts = Callable[[list[tuple[float, bool]]], list[Recall]]


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Verdicts:
    """Say what the answers are worth; gives the list of what will have been asked."""

    def say(given: list[tuple[float, bool]]) -> list[Recall]:
        asked: list[Recall] = []

        def answered(_: PreTrainedModel, recall: Recall) -> tuple[float, bool]:
            asked.append(recall)
            return given[len(asked) - 1]

        monkeypatch.setattr(module, "answer", answered)
        return asked

    return say


@pytest.mark.parametrize("right", range(5))
def test_rate_standard_error_and_loss(
    llama: PreTrainedModel, bytes_tokenizer: PreTrainedTokenizerFast, verdicts: Verdicts, right: int
) -> None:
    verdicts([(float(i), i < right) for i in range(4)])
    told: list[int] = []
    found = retrieval(llama, np.full((1, 90), 65), bytes_tokenizer, 90, trials=4, done=told.append)
    rate = right / 4
    error = math.sqrt(rate * (1 - rate) / 4)
    assert found == Retrieval(90, rate, pytest.approx(error), pytest.approx(1.5))
    assert told == [1, 2, 3, 4]


def test_one_line_at_a_random_depth_is_asked_for_at_the_end(
    llama: PreTrainedModel, bytes_tokenizer: PreTrainedTokenizerFast, verdicts: Verdicts
) -> None:
    """In the texts in turn, each as long as said."""
    asked = verdicts([(0.0, True)] * 60)
    texts = 1000 * np.arange(1, 4)[:, None] + np.arange(300)
    retrieval(llama, texts, bytes_tokenizer, 200, trials=60)
    depths = []
    for i, recall in enumerate(asked):
        assert recall.tokens.shape == (200,)
        background = np.flatnonzero(recall.tokens >= 1000)
        assert np.array_equal(recall.tokens[background], texts[i % 3, : len(background)])
        lines = np.flatnonzero(recall.tokens < 1000)
        wanted = recall.tokens[recall.answers].tolist()
        assert not (recall.tokens[lines[-1] - len(wanted) :] >= 1000).any()
        assert recall.answers[lines[-1] - len(wanted) : lines[-1]].all()  # then the end of the line
        assert lines[-1] == 199
        depths.append(lines[0] / len(background))
    shares = np.histogram(depths, bins=3, range=(0, 1))[0] / 60
    np.testing.assert_allclose(shares, 1 / 3, atol=0.2)
