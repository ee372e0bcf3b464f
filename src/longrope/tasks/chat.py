"""The text that a chat template puts around a user's message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from longrope.errors import LongRopeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = ("auto", "on", "off")
MARK = "<<message>>"
# switch thinking off, and keep today's date out of the prompt, in the templates that know these names
VARIABLES = {"enable_thinking": False, "thinking": False, "date_string": "26 Jul 2024"}


@dataclass(frozen=True)
class ChatFormat:
    """The text before a user's message, and the text between it and the model's answer."""

    before: str
    after: str


def chat_format(tokenizer: PreTrainedTokenizerBase, chat: str) -> ChatFormat | None:
    """Return the format of a tokenizer's chat template with thinking switched off; None for plain prompts.

    Args:
        tokenizer: Tokenizer of the model.
        chat: ``on``, ``off``, or ``auto``: on if the tokenizer has a chat template.

    Raises:
        LongRopeError: If chat is on without a template, or the template cannot render a user's message.
    """
    if chat == "off" or (chat == "auto" and not tokenizer.chat_template):
        return None
    if not tokenizer.chat_template:
        raise LongRopeError("chat = on: the tokenizer has no chat template. Set auto or off.")
    messages = [{"role": "user", "content": MARK}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **VARIABLES))
        before, after = text.split(MARK)
    except Exception as error:  # a template is a program that may raise anything
        raise LongRopeError(
            f"chat = {chat}: the chat template cannot render a user's message: {error}. Set off for plain prompts."
        ) from None
    return ChatFormat(before, after)
