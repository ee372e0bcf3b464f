"""The answer to one of the questions of a report's verdict."""

from __future__ import annotations

from dataclasses import dataclass

HOLDS = 1.05  # times the original model's perplexity at L0 that an extension may have, at L and at L0
FINDS = 0.8  # share of what is hidden that it should find


@dataclass(frozen=True)
class VerdictAnswer:
    """An answer in a few words, and the numbers behind it.

    Args:
        question: Question of a person.
        verdict: Answer in a few words.
        why: Sentences with all numbers.
        numbers: Numbers that decided, in a few words.
        advice: What to do next, in a few words; empty if nothing is missing.
    """

    question: str
    verdict: str
    why: str
    numbers: str = ""
    advice: str = ""

    def clause(self) -> str:
        """Return the answer as a clause with its numbers and the advice."""
        numbers = f" ({self.numbers})" if self.numbers else ""
        return self.verdict[0].lower() + self.verdict[1:] + numbers + (f"; {self.advice}" if self.advice else "")
