from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean

import all_types
import families
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from longrope.data.key_value_lines import make_key_value_text
from longrope.data.stdlib import stdlib_documents
from longrope.data.tokenize import encode_within
from longrope.errors import LongRopeError
from longrope.longcontext.token_losses import head_losses, token_losses
from longrope.models.load import load
from longrope.models.patch import patch
from longrope.rope import Rope
from longrope.scaling import Extension
from longrope.schemes import scheme
from longrope.tasks.prompts import Prompt, string_match
from longrope.tasks.registry import make_prompts
from longrope.tasks.scoring import PromptScore, score_prompts

LENGTH, ROWS = 256, 300
Tiny = tuple[PreTrainedModel, PreTrainedTokenizerFast]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return load("tiny", dtype="float32")


@pytest.fixture(scope="module")
def texts(tiny: Tiny) -> np.ndarray:
    """(8, 2048): the beginnings of documents that the model never saw."""
    documents = [text[:16_000] for _, text in stdlib_documents(unseen=True) if len(text) > 30_000][:8]
    ids = tiny[1](documents, add_special_tokens=False, verbose=False)["input_ids"]
    return np.stack([document[:2048] for document in ids])


def recall_prompts(tiny: Tiny, texts: np.ndarray, length: int, trials: int) -> list[Prompt]:
    return make_prompts("recall", tiny[1], length=length, trials=trials, texts=texts)


def other_prompts(tokenizer: PreTrainedTokenizerFast, length: int = 300) -> list[Prompt]:
    """Return prompts of tasks with one answer and with several."""
    return [
        *make_prompts("passkey", tokenizer, length=length, trials=2),
        *make_prompts("fwe", tokenizer, length=512, trials=1),
    ]


def generated(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> list[int]:
    """Return the tokens that transformers generates, without the one that ends them."""
    ids = torch.from_numpy(prompt.tokens)[None]
    options = {"attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    output = model.generate(ids, do_sample=False, max_new_tokens=prompt.room, **options)
    answer, ends = output[0, len(prompt.tokens) :].tolist(), model.generation_config.eos_token_id
    return answer[:-1] if answer[-1] in np.atleast_1d(ends) else answer


def until_answered(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: Prompt) -> str:
    """Return the text that transformers generates, cut after the first token with which it has all answers."""
    ids = generated(model, tokenizer, prompt)
    texts = [tokenizer.decode(ids[: i + 1]) for i in range(len(ids))]
    return next((text for text in texts if prompt.score(text) == 1), texts[-1])


def plain_loss(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: Prompt, answer: str) -> float:
    """Return the loss of an answer from the logits of the whole text."""
    (ends,) = encode_within(tokenizer, [f" {answer}"])
    logits = families.logits(model, torch.from_numpy(np.concatenate([prompt.tokens, ends]))[None])[0]
    return float(cross_entropy(logits[-len(ends) - 1 : -1].float(), torch.from_numpy(ends)))


@contextmanager
def recorded_logits(model: PreTrainedModel) -> Iterator[list[tuple[int, ...]]]:
    """Yield a list that gets the shapes of the logits computed in the block."""
    shapes: list[tuple[int, ...]] = []
    with model.get_output_embeddings().register_forward_hook(lambda *made: shapes.append(tuple(made[2].shape))):
        yield shapes


def test_the_text_is_what_transformers_generates(tiny: Tiny, texts: np.ndarray) -> None:
    """Within the model's length and beyond it, patched or not, right and wrong."""
    model, tokenizer = tiny
    prompts = [*recall_prompts(tiny, texts, LENGTH, 2), *recall_prompts(tiny, texts, 320, 3), *other_prompts(tokenizer)]
    scores = score_prompts(model, tokenizer, prompts)
    for prompt, score in zip(prompts, scores, strict=True):
        assert score.text == until_answered(model, tokenizer, prompt)
        assert score.score == prompt.score(tokenizer.decode(generated(model, tokenizer, prompt)))
    assert {score.score for score in scores} >= {0.0, 1.0}
    with patch(model, scheme("yarn", Rope.of(model), 1024)):
        (prompt,) = recall_prompts(tiny, texts, 1024, 1)
        (score,) = score_prompts(model, tokenizer, [prompt])
        assert score.text == until_answered(model, tokenizer, prompt)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "cohere", "gpt_neox", "mixtral"])
def test_text_and_losses_of_every_family(family: str, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    """Windows, soft caps and scales included: as from plain forward passes."""
    fields = {"gemma2": {"final_logit_softcapping": 5.0, "sliding_window": 32}, "cohere": {"logit_scale": 0.3}}
    model = families.build(family, vocab_size=ROWS, **fields.get(family, {}))
    prompts = make_prompts("passkey", bytes_tokenizer, length=420, trials=2)
    for prompt, score in zip(prompts, score_prompts(model, bytes_tokenizer, prompts, batch=2), strict=True):
        assert score.text == until_answered(model, bytes_tokenizer, prompt)
        loss, *wrong = (
            plain_loss(model, bytes_tokenizer, prompt, option) for option in (*prompt.answers, *prompt.wrong)
        )
        assert score.loss == pytest.approx(loss, rel=1e-4)
        assert score.margin == pytest.approx(min(wrong) - loss, abs=1e-4 * loss)
        assert score.choice == (min(wrong) > loss)


def test_the_loss_of_a_recall_is_that_of_its_words(tiny: Tiny, texts: np.ndarray) -> None:
    """And the same trial as a needle of the search objective has."""
    model, tokenizer = tiny
    (prompt,) = recall_prompts(tiny, texts, 200, 1)
    text = make_key_value_text(texts[0], tokenizer, rng=np.random.default_rng(0), length=200)
    answers = np.flatnonzero(text.answers)
    logits = families.logits(model, torch.from_numpy(text.tokens)[None])[0, answers - 1]
    loss = cross_entropy(logits, torch.from_numpy(text.tokens[answers])).item()
    assert score_prompts(model, tokenizer, [prompt])[0].loss == pytest.approx(loss, rel=1e-4)


def test_a_batch_is_what_its_rows_are(tiny: Tiny, texts: np.ndarray) -> None:
    """Scores keep the order of prompts of several lengths, and progress is reported."""
    model, tokenizer = tiny
    prompts = [*other_prompts(tokenizer), *recall_prompts(tiny, texts, LENGTH, 4)]
    order = np.random.default_rng(0).permutation(len(prompts))
    finished: list[int] = []
    together = score_prompts(model, tokenizer, [prompts[i] for i in order], batch=2, on_progress=finished.append)
    for i, score in zip(order, together, strict=True):
        (alone,) = score_prompts(model, tokenizer, [prompts[i]])
        assert (score.text, score.score, score.choice) == (alone.text, alone.score, alone.choice)
        assert score.loss == (None if alone.loss is None else pytest.approx(alone.loss, rel=1e-4))
    assert finished == sorted(finished)
    assert finished[-1] == len(prompts)


def test_options_of_unlike_lengths_side_by_side(tiny: Tiny) -> None:
    model, tokenizer = tiny
    (prompt,) = make_prompts("passkey", tokenizer, length=LENGTH, trials=1)
    long = Prompt(prompt.tokens, ("1234567",), ("1",), None, 8)
    short = Prompt(prompt.tokens, ("1",), ("1234567", "12"), None, 8)
    for prompt, score in zip([long, short], score_prompts(model, tokenizer, [long, short], batch=2), strict=True):
        loss, *wrong = (plain_loss(model, tokenizer, prompt, option) for option in (*prompt.answers, *prompt.wrong))
        assert score.loss == pytest.approx(loss, rel=1e-4)
        assert score.margin == pytest.approx(min(wrong) - loss, abs=1e-4)


def test_the_prompt_runs_once_and_the_head_never_on_it(tiny: Tiny) -> None:
    model, tokenizer = tiny
    passed: list[int] = []
    prompts = make_prompts("passkey", tokenizer, length=LENGTH, trials=2)
    hook = model.get_input_embeddings().register_forward_hook(lambda *made: passed.append(made[1][0].shape[1]))
    with hook, recorded_logits(model) as shapes:
        score_prompts(model, tokenizer, prompts, batch=2)
    assert passed[0] == len(prompts[0].tokens) - 1
    assert max(passed[1:]) <= prompts[0].room
    assert {shape[0] for shape in shapes} == {2}
    assert max(shape[1] for shape in shapes) <= prompts[0].room


def alone(prompt: Prompt) -> Prompt:
    """Return the same prompt as the only question of its document."""
    return replace(prompt, shared=0)


def assert_equal_scores(shared: list[PromptScore], single: list[PromptScore]) -> None:
    for score, other in zip(shared, single, strict=True):
        assert (score.text, score.score, score.choice) == (other.text, other.score, other.choice)
        assert score.loss == pytest.approx(other.loss, abs=1e-4)
        assert score.margin == pytest.approx(other.margin, abs=1e-4)


def test_questions_of_one_document_score_as_each_alone(tiny: Tiny, texts: np.ndarray) -> None:
    """With the long factors of an extension and with static ones; other prompts in between."""
    model, tokenizer = tiny
    rope = Rope.of(model)
    request = {"length": 520, "trials": 3, "questions": 2, "texts": texts}
    prompts = [
        *make_prompts("recall", tokenizer, **request),
        *make_prompts("niah_single_2", tokenizer, **request | {"trials": 2}),
    ]
    mixed = [*prompts[::2], *other_prompts(tokenizer)[:1], *prompts[1::2]]
    for scaling in (Extension.of(rope, scheme("yarn", rope, 1024)).at(520), scheme("ntk", rope, 1024)):
        with patch(model, scaling):
            scores = score_prompts(model, tokenizer, mixed, batch=2)
            assert_equal_scores(scores, [score_prompts(model, tokenizer, [alone(prompt)])[0] for prompt in mixed])
    assert {score.score for score in scores} == {0.0, 1.0}


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "mistral"])
def test_questions_of_one_document_in_every_family(family: str, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    """Windows shorter than the document included."""
    fields = {"sliding_window": 32} if family != "llama" else {}
    model = families.build(family, vocab_size=ROWS, **fields)
    prompts = make_prompts("niah_single_1", bytes_tokenizer, length=900, trials=3, questions=2)
    single = [score_prompts(model, bytes_tokenizer, [alone(prompt)])[0] for prompt in prompts]
    assert_equal_scores(score_prompts(model, bytes_tokenizer, prompts), single)


@pytest.mark.parametrize("kind", ["lfm2_moe", "granitemoehybrid", "olmo_hybrid", "minimax"])
def test_models_whose_state_cannot_go_back(kind: str, bytes_tokenizer: PreTrainedTokenizerFast) -> None:
    """Convolutions and recurrences: texts as generated, losses as from one pass, questions as each alone."""
    model = all_types.build(kind)
    model.resize_token_embeddings(ROWS, mean_resizing=False)
    (prompt,) = make_prompts("passkey", bytes_tokenizer, length=420, trials=1)
    (score,) = score_prompts(model, bytes_tokenizer, [prompt])
    assert score.text == until_answered(model, bytes_tokenizer, prompt)
    assert score.loss == pytest.approx(plain_loss(model, bytes_tokenizer, prompt, prompt.answers[0]), abs=1e-4)
    prompts = make_prompts("niah_single_1", bytes_tokenizer, length=900, trials=2, questions=2)
    single = [score_prompts(model, bytes_tokenizer, [alone(prompt)])[0] for prompt in prompts]
    assert_equal_scores(score_prompts(model, bytes_tokenizer, prompts), single)


def test_a_document_passes_once_for_all_its_questions(tiny: Tiny, texts: np.ndarray) -> None:
    """And again for the questions of the next document; a question of one token too."""
    model, tokenizer = tiny
    prompts = make_prompts("recall", tokenizer, length=512, trials=7, questions=4, texts=texts)
    finished: list[int] = []
    passed: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(lambda *made: passed.append(made[1][0].shape[1]))
    with hook:
        score_prompts(model, tokenizer, prompts, on_progress=finished.append)
    assert [size for size in passed if size > 30] == [prompts[i].shared for i in (0, 4)]
    assert finished == [4, 7]
    prompt = replace(prompts[0], shared=len(prompts[0].tokens) - 1)
    first, second = score_prompts(model, tokenizer, [prompt, prompt])
    assert_equal_scores([first], [second])


def test_the_losses_of_a_document_come_from_the_same_pass(tiny: Tiny, texts: np.ndarray) -> None:
    model, tokenizer = tiny
    prompts = make_prompts("recall", tokenizer, length=512, trials=7, questions=4, texts=texts)
    found: list[np.ndarray] = []

    def on_document(tokens: Tensor, hidden: Tensor) -> None:
        found.append(np.concatenate([values[0].numpy() for *_, values in head_losses(model, tokens, hidden)]))

    score_prompts(model, tokenizer, prompts, on_document=on_document)
    for losses, prompt in zip(found, (prompts[0], prompts[4]), strict=True):
        wanted = token_losses(model, prompt.tokens[None, : prompt.shared])[0]
        np.testing.assert_allclose(losses, wanted, atol=1e-4)


def test_a_longer_document_is_read_on_from_the_shorter_one(tiny: Tiny, texts: np.ndarray) -> None:
    model, tokenizer = tiny
    prompt, other = make_prompts("recall", tokenizer, length=512, trials=2, questions=1, texts=texts)
    question = prompt.tokens[-4:]
    prompts = [
        replace(prompt, tokens=np.concatenate([prompt.tokens[:size], question]), shared=size)
        for size in (200, 350, 450)
    ]
    prompts.insert(2, replace(other, shared=100))  # begins otherwise, so that the third one is read from its beginning
    read: list[int] = []
    scores = score_prompts(model, tokenizer, prompts, on_document=lambda tokens, _: read.append(tokens.shape[1]))
    assert read == [200, 150, 100, 450]
    alone = [score_prompts(model, tokenizer, [prompt])[0] for prompt in prompts]
    assert len({score.loss for score in alone}) == len(alone)
    assert_equal_scores(scores, alone)


def test_a_text_ends_where_the_model_ends_it(tiny: Tiny, texts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end tokens of its generation config, in one row while others go on."""
    model, tokenizer = tiny
    prompts = make_prompts("niah_single_2", tokenizer, length=300, trials=4, texts=texts)
    free = [score.text for score in score_prompts(model, tokenizer, prompts, batch=4)]
    stops = [tokenizer.eos_token_id, *(ids[0] for ids in tokenizer([" the", "."])["input_ids"])]
    monkeypatch.setattr(model.generation_config, "eos_token_id", stops)
    ended = [score.text for score in score_prompts(model, tokenizer, prompts, batch=4)]
    assert ended == [until_answered(model, tokenizer, prompt) for prompt in prompts]
    assert len({len(text) for text in ended}) > 1
    assert all(text.startswith(shorter) for text, shorter in zip(free, ended, strict=True))
    assert free != ended


def test_no_token_is_generated_after_the_last_answer(tiny: Tiny, texts: np.ndarray) -> None:
    """In a batch the other rows go on."""
    model, tokenizer = tiny
    prompts = [replace(prompt, room=40) for prompt in recall_prompts(tiny, texts, LENGTH, 4)]
    lost = replace(prompts[0], answers=("lost",), wrong=())
    for asked, steps in ((prompts[:1], range(1, 10)), ([lost], [40]), ([prompts[0], lost], [40])):
        with recorded_logits(model) as shapes:
            scores = score_prompts(model, tokenizer, asked, batch=2)
        options = max(len((*prompt.answers, *prompt.wrong)) for prompt in asked)
        assert len(shapes) - options in steps
        assert [score.score for score in scores] == [float(prompt is not lost) for prompt in asked]


def test_the_choice_is_the_lowest_loss(tiny: Tiny) -> None:
    """The right answer and a wrong one, exchanged, choose the other way round."""
    model, tokenizer = tiny
    for prompt in make_prompts("passkey", tokenizer, length=LENGTH, trials=3):
        first = Prompt(prompt.tokens, prompt.answers, prompt.wrong[:1], None, prompt.room)
        other = Prompt(prompt.tokens, prompt.wrong[:1], prompt.answers, None, prompt.room)
        score, swapped = score_prompts(model, tokenizer, [first, other])
        assert score.choice is not swapped.choice
        assert score.margin is not None
        assert score.margin == pytest.approx(-(swapped.margin or 0), abs=1e-5)
        assert swapped.text.startswith(score.text) or score.text.startswith(swapped.text)


def test_an_answer_is_exact_where_greedy_generation_begins_with_it(tiny: Tiny, texts: np.ndarray) -> None:
    """Also in a batch, and where nothing is generated."""
    model, tokenizer = tiny
    prompts = [*recall_prompts(tiny, texts, LENGTH, 6), *recall_prompts(tiny, texts, 2 * LENGTH, 6)]
    begins = [until_answered(model, tokenizer, prompt).startswith(f" {prompt.answers[0]}") for prompt in prompts]
    assert {True, False} == set(begins)
    for batch, asked in ((1, prompts), (3, prompts), (1, [replace(prompt, room=0) for prompt in prompts])):
        scores = score_prompts(model, tokenizer, asked, batch=batch)
        assert [score.exact for score in scores] == begins
    assert {score.text for score in scores} == {""}


def test_several_answers_leave_nothing_to_choose(tiny: Tiny) -> None:
    (score,) = score_prompts(*tiny, make_prompts("fwe", tiny[1], length=512, trials=1))
    assert score == PromptScore(score.score, score.text, None, None, None, None)


def test_tiny_recalls_within_its_own_length_and_not_beyond(tiny: Tiny, texts: np.ndarray) -> None:
    """With YaRN's factors it recalls beyond its length too."""
    model, tokenizer = tiny
    own = score_prompts(model, tokenizer, recall_prompts(tiny, texts, LENGTH, 10))
    beyond = score_prompts(model, tokenizer, recall_prompts(tiny, texts, 2048, 3))
    with patch(model, scheme("yarn", Rope.of(model), 2048)):
        helped = score_prompts(model, tokenizer, recall_prompts(tiny, texts, 2048, 3))
    rates = [fmean(score.score for score in scores) for scores in (own, beyond, helped)]
    assert rates[0] >= 0.9
    assert rates[1] <= 0.2
    assert rates[2] >= 0.4
    losses = [np.mean([score.loss for score in scores]) for scores in (own, helped, beyond)]
    assert losses == sorted(losses)
    assert losses[1] < losses[2] / 2


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        (" 1234567.", ["1234567"], 1.0),
        (" 123456", ["1234567"], 0.0),
        ("They are Kappa, BETA", ["kappa", "beta", "gamma", "delta"], 0.5),
        ("", ["1"], 0.0),
        ("x1y", ["1", "x", "Y"], 1.0),
    ],
)
def test_the_score_is_the_share_of_the_answers_that_occur(text: str, answers: list[str], score: float) -> None:
    assert string_match(text, answers) == score


def test_out_of_memory_is_explained(tiny: Tiny, texts: np.ndarray) -> None:
    model, tokenizer = tiny

    def fail(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with (
        model.get_input_embeddings().register_forward_pre_hook(fail),
        pytest.raises(LongRopeError, match=r"out of memory at length 256 with batch 1 on cpu; lower the length"),
    ):
        score_prompts(model, tokenizer, recall_prompts(tiny, texts, LENGTH, 1))
