"""Prompts in the tokenizer's chat template."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
from ruler_files import ruler_folder
from transformers import PreTrainedTokenizerFast

from longrope.errors import LongRopeError
from longrope.models.load import load_tokenizer
from longrope.tasks.registry import TASKS, make_prompts

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LENGTH = 2500


@pytest.fixture(scope="module")
def plain() -> PreTrainedTokenizerFast:
    return load_tokenizer("tiny")


@pytest.fixture(scope="module")
def tokenizer(plain: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template that thinks unless it is told not to."""
    chat = deepcopy(plain)
    chat.chat_template = CHATML
    return chat


@pytest.mark.parametrize("task", [task for task in TASKS if task != "recall"])
def test_the_prompt_is_what_the_template_renders(task: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """The plain prompt up to its answer, rendered without thinking, and the beginning of the answer behind it."""
    request = {"length": LENGTH, "trials": 2, "ruler_data": ruler_folder()}
    for prompt in make_prompts(task, tokenizer, **request):
        text = tokenizer.decode(prompt.tokens)
        head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
        message, prefix = text.removeprefix(head).split(tail)
        messages = [{"role": "user", "content": message}]
        options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": False}
        assert tokenizer.apply_chat_template(messages, **options) + prefix == text
        assert prefix
        assert prompt.chat
        assert LENGTH - 120 < len(prompt.tokens) + prompt.room <= LENGTH
        if task.startswith(("niah", "vt", "copy", "mrcr", "passkey")):
            assert len(prompt.tokens) + prompt.room == LENGTH


def test_the_words_are_those_of_the_plain_prompt(
    tokenizer: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast
) -> None:
    for task in ("niah_multikey_2", "vt"):
        request = {"length": LENGTH, "trials": 1}
        (chat,), (alone,) = (make_prompts(task, t, **request) for t in (tokenizer, plain))
        message = tokenizer.decode(chat.tokens).split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        text = plain.decode(alone.tokens)
        assert message[:200] == text[:200]
        assert message[-80:] in text
        assert chat.answers == alone.answers


def test_questions_share_a_document_in_a_template_too(tokenizer: PreTrainedTokenizerFast) -> None:
    first, second = make_prompts("niah_single_1", tokenizer, length=LENGTH, trials=2, questions=2)
    assert first.document == second.document
    assert tokenizer.decode(first.tokens[: first.shared]).startswith("<|im_start|>user\nA special magic")
    assert len(first.tokens) + first.room <= LENGTH


def test_off_and_auto_without_a_template_are_plain(
    tokenizer: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast
) -> None:
    request = {"length": LENGTH, "trials": 1}
    (off,) = make_prompts("passkey", tokenizer, chat="off", **request)
    (auto,) = make_prompts("passkey", plain, **request)
    np.testing.assert_array_equal(off.tokens, auto.tokens)
    assert not off.chat


def test_a_text_to_continue_is_never_a_message(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = np.array(tokenizer("x = 1\n" * 900)["input_ids"])[None, :600]
    (prompt,) = make_prompts("recall", tokenizer, length=500, trials=1, texts=texts, chat="on")
    assert not prompt.chat
    assert "im_start" not in tokenizer.decode(prompt.tokens)


@pytest.mark.parametrize(
    ("template", "chat", "error"),
    [
        (None, "on", "chat = on: the tokenizer has no chat template. Set auto or off"),
        (None, "maybe", "chat = 'maybe' is unknown; choose one of auto, on, off"),
        ("{{ messages[7].content }}", "auto", "chat = auto: the chat template cannot render a user's message"),
        ("hello", "on", "chat = on: the chat template cannot render"),
    ],
)
def test_what_is_refused(template: str | None, chat: str, error: str, plain: PreTrainedTokenizerFast) -> None:
    broken = deepcopy(plain)
    broken.chat_template = template
    with pytest.raises(LongRopeError, match=error):
        make_prompts("passkey", broken, length=LENGTH, trials=1, chat=chat)


@pytest.mark.real
@pytest.mark.parametrize("task", ["niah_single_1", "vt", "cwe", "fwe", "passkey", "graph_walks"])
def test_smollm2_reads_the_tokens_of_its_template(task: str) -> None:
    """Token by token, with the system message that the template adds."""
    smollm2 = load_tokenizer("smollm2")
    (prompt,) = make_prompts(task, smollm2, length=LENGTH, trials=1)
    text = smollm2.decode(prompt.tokens)
    message, prefix = text.split("<|im_start|>user\n")[1].split("<|im_end|>\n<|im_start|>assistant\n")
    messages = [{"role": "user", "content": message}]
    rendered = smollm2.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    np.testing.assert_array_equal(smollm2(rendered + prefix, add_special_tokens=False)["input_ids"], prompt.tokens)
    assert prompt.chat
