"""What a server computes at one length, and how it departs from the checkpoint there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from longrope.servers.answers import Answer
from longrope.tasks.prompts import string_match

SAME = 0.05  # nats, or share of the tokens: what rounding explains; other sets differ by tenths
CLEAR = 0.5  # beyond SAME, a set is the server's if every other one is at least twice as far


@dataclass(frozen=True)
class ProbedLength:
    """What a server computes at one length.

    Args:
        length: Length in tokens, with the generated ones.
        expected: Name of the set that the checkpoint is made for.
        distances: Distance of each set from the server: root mean square of the difference of log-probabilities in
            nats, or the share of the server's tokens that the model would not choose. Empty without a comparison.
        refusal: The server's words, if it refused the length.
        sent: Tokens of the first prompt, or of the first one that the server cut.
        read: Tokens that the server read of it, if it cut the prompt; None if it did not.
        recalled: Share of the questions that the server answered from the beginning of the text; None without any.
    """

    length: int
    expected: str
    distances: Mapping[str, float]
    refusal: str = ""
    sent: int = 0
    read: int | None = None
    recalled: float | None = None

    @classmethod
    def of(
        cls, length: int, expected: str, answers: Sequence[Answer], squared: Sequence[Mapping[str, float]]
    ) -> ProbedLength:
        """Sum up the answers at one length.

        Args:
            length: Length in tokens.
            expected: Name of the set that the checkpoint is made for.
            answers: Answers to the prompts of this length.
            squared: What `squared_distances` returned for those of them that have generated tokens.
        """
        root = math.sqrt if any(answer.top for answer in answers) else float
        distances = {name: root(fmean(row[name] for row in squared)) for name in (squared[0] if squared else ())}
        cut = next((answer for answer in answers if answer.read is not None), None)
        recalls = [string_match(answer.text, answer.prompt.answers) for answer in answers if answer.prompt.answers]
        return cls(
            length,
            expected,
            distances,
            refusal=next((answer.refusal for answer in answers if answer.refusal), ""),
            sent=len((cut or answers[0]).tokens),
            read=None if cut is None else cut.read,
            recalled=fmean(recalls) if recalls else None,
        )

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the sets that the server may compute with; empty if none of them is near enough."""
        near = tuple(name for name, distance in self.distances.items() if distance <= SAME)
        if near or not self.distances:
            return near
        nearest, *others = sorted(self.distances, key=lambda name: self.distances[name])
        clear = all(self.distances[nearest] <= CLEAR * self.distances[name] for name in others)
        return (nearest,) if clear else ()

    @property
    def fault(self) -> str:
        """The departure from the checkpoint, as a clause about the server; empty if there is none."""
        if self.refusal:
            return "refuses the prompt"
        if self.read is not None:
            return "cuts the prompt without an error"
        if not self.distances:
            return "generates no text that could be compared"
        if self.expected in self.runs:
            return ""
        if self.runs:
            return f"computes with {' or '.join(self.runs)}, where {self.expected} belongs"
        return f"computes with none of {', '.join(self.distances)}"

    @property
    def details(self) -> str:
        """The server's words, or its number of tokens, about the departure; empty without any."""
        if self.refusal:
            return self.refusal
        return "" if self.read is None else f"it reads {self.read:,} of {self.sent:,} tokens"

    @property
    def ok(self) -> bool:
        """Whether the server computes with the set that the checkpoint is made for."""
        return not self.fault
