"""Drafts of RULER's needle and variable tasks, in RULER's words (Hsieh et al., arXiv 2404.06654; NVIDIA/RULER)."""

from __future__ import annotations

import string

import numpy as np

from longrope.tasks.haystack import NOISE
from longrope.tasks.needle_task import NeedleDraft
from longrope.tasks.words import CHOICES, compounds, letters, numbers, uuids

VALUES = {"numbers": numbers, "uuids": uuids}
KEYS = {"words": compounds, "uuids": uuids}
VARIABLES = 5  # of a chain, which has four hops
EXAMPLE_NOISE, EXAMPLE_LETTERS = 10, 3  # of the worked example, which has up to 500 tokens in RULER


def needle(key: str, value: str, kind: str) -> str:
    """Return the sentence that gives a key its value."""
    return f"One of the special magic {kind} for {key} is: {value}."


def distractor(rng: np.random.Generator, *, key: str, value: str) -> str:
    """Return a line like a needle, with a key of its own."""
    return needle(KEYS[key](rng, 1)[0], VALUES[value](rng, 1)[0], value) + "\n"


def niah(
    rng: np.random.Generator,
    depth: float,
    *,
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
    key: str = "words",
    value: str = "numbers",
    line: str = "{}\n",
) -> NeedleDraft:
    """Draft a needle-in-a-haystack trial: values under keys. The answers are all values of the keys in the question.

    Args:
        rng: Generator of the keys, values and depths.
        depth: Depth of the first needle, from 0 to 1.
        keys: Number of keys.
        values: Number of values of each key.
        queries: Number of keys in the question.
        key: Kind of the keys, ``words`` or ``uuids``.
        value: Kind of the values, ``numbers`` or ``uuids``.
        line: Form of a needle within the haystack.
    """
    names, drawn = KEYS[key](rng, keys), VALUES[value](rng, max(keys * values, CHOICES))
    pairs = [(name, drawn[values * i + j]) for i, name in enumerate(names) for j in range(values)]
    answers = tuple(number for _, number in pairs[: queries * values])
    single = len(answers) == 1
    queried = names[0] if queries == 1 else f"{', '.join(names[: queries - 1])}, and {names[queries - 1]}"
    kind, are = (value[:-1], "is") if single else (value, "are")
    return NeedleDraft(
        f"{f'A special magic {kind} is' if single else f'Some special magic {kind} are'} hidden within the following "
        f"text. Make sure to memorize it. I will quiz you about the {kind} afterwards.\n",
        tuple(line.format(needle(name, number, value)) for name, number in pairs),
        (depth, *rng.random(len(pairs) - 1)),
        f"\nWhat {are if single else 'are all'} the special magic {kind} for {queried} mentioned in the provided text?",
        answers,
        tuple(drawn[1:]) if single else (),  # other keys' values are the hardest to tell apart
        tuple(names),
        prefix=f"The special magic {kind} for {queried} mentioned in the provided text {are}",
    )


def variables(rng: np.random.Generator, depth: float) -> NeedleDraft:
    """Draft a variable-tracking trial: a chain of assignments. The answers are all variables of the chain."""
    del depth  # each assignment has a random place, in the order of the chain
    names, (value,) = letters(rng, VARIABLES, 5, string.ascii_uppercase), numbers(rng, 1, digits=5)
    intro, question, prefix = _variable_strings(value)
    return NeedleDraft(
        intro,
        tuple(_chain(names, value)),
        tuple(sorted(rng.random(VARIABLES))),
        question,
        tuple(names),
        keys=(value, *names),
        prefix=prefix,
        example=_variable_example(rng),
    )


def _chain(names: list[str], value: str) -> list[str]:
    """Return the lines that give a value to the first variable, and each variable to the next."""
    pairs = zip(names[1:], names, strict=False)
    return [f" VAR {names[0]} = {value}", *(f" VAR {name} = VAR {source} " for name, source in pairs)]


def _variable_strings(value: str) -> tuple[str, str, str]:
    """Return the introduction, the question and the beginning of the answer."""
    return (
        "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
        f"\nQuestion: Find all variables that are assigned the value {value} in the text above.",
        f"Answer: According to the chain(s) of variable assignment in the text above, {VARIABLES} variables are "
        f"assgined the value {value}, they are:",
    )


def _variable_example(rng: np.random.Generator) -> str:
    """Return a solved task with short names in ten lines of noise."""
    names, (value,) = letters(rng, VARIABLES, EXAMPLE_LETTERS, string.ascii_uppercase), numbers(rng, 1, digits=5)
    lines = [f" {NOISE}\n"] * EXAMPLE_NOISE
    places = sorted(rng.choice(EXAMPLE_NOISE, size=VARIABLES, replace=False))
    for shift, (index, line) in enumerate(zip(places, _chain(names, value), strict=True)):
        lines.insert(index + shift, line)
    intro, question, prefix = _variable_strings(value)
    return f"{intro}{''.join(lines).lstrip()}{question} {prefix}  {' '.join(names)}\n\n\n\n"
