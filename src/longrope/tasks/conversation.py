"""Draft of multi-round coreference: the model repeats one of several answers to equal requests."""

from __future__ import annotations

import numpy as np

from longrope.tasks.needle_task import NeedleDraft
from longrope.tasks.words import word_lists

FORMS = ("poem", "riddle", "song", "letter", "speech", "recipe", "diary entry", "news item")
ORDINALS = ("first", "second", "third", "fourth")
SENTENCES = 3


def random_turn(rng: np.random.Generator) -> str:
    """Return a request for a short text that no trial asks for, and the answer."""
    return _turn(_request(rng, 0), _sentences(rng))


def mrcr(rng: np.random.Generator, depth: float, *, needles: int = 4) -> NeedleDraft:
    """Draft a coreference trial (Vodrahalli et al., arXiv 2409.12640): one of four texts of the same form and topic.

    The requests and texts are our own. The answers are the sentences of the text, so the score is their share.

    Args:
        rng: Generator of the words and depths.
        depth: Depth of the first equal request.
        needles: Number of equal requests.
    """
    request, texts = _request(rng, 1), [_sentences(rng) for _ in range(needles)]
    which = int(rng.integers(needles))
    depths = sorted([depth, *rng.random(needles - 1)])
    return NeedleDraft(
        "The following is a conversation. I will ask you to repeat a text of it afterwards.\n",
        tuple(_turn(request, text) for text in texts),
        tuple(depths),
        f"\n\nRepeat the {ORDINALS[which]} {request} of the conversation, word for word, and nothing else.",
        tuple(texts[which]),
        keys=(request,),
        prefix="Assistant:",
    )


def _request(rng: np.random.Generator, half: int) -> str:
    """Return a request about a noun of one half of the list: the haystack has one, the asked requests the other."""
    nouns = word_lists()[1][half::2]
    return f"{FORMS[rng.integers(len(FORMS))]} about the word {nouns[rng.integers(len(nouns))]}"


def _sentences(rng: np.random.Generator) -> list[str]:
    adjectives, nouns, verbs = ([words[i] for i in rng.integers(len(words), size=6)] for words in word_lists())
    return [
        f"The {adjectives[i]} {nouns[i]} will {verbs[i]} the {adjectives[i + 3]} {nouns[i + 3]}."
        for i in range(SENTENCES)
    ]


def _turn(request: str, text: list[str]) -> str:
    return f"User: Write a {request}.\nAssistant: {' '.join(text)}\n"
