"""Test documents of ``benchmarks/smollm2.py`` with planted lines, and the questions for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from smollm2_case import KINDS, Case

from longrope.data.key_value_lines import KeyValueText, interleave, make_lines
from longrope.tasks.prompts import Prompt
from longrope.tasks.ruler import niah

END = 96  # tokens at the end of each length that are left to a question and its answer


class PlantedText:
    """A document with lines planted at random places, equally many in each quarter, and the questions for them.

    Args:
        document: Token ids ``(tokens,)``, at least as many as the text has.
        tokenizer: Tokenizer of the model.
        seed: Seed of the lines and of their places.
        case: Length of the text, and numbers of lines and questions.
    """

    def __init__(self, document: np.ndarray, tokenizer: Any, seed: int, case: Case) -> None:
        self.case, self.rng, questions = case, np.random.default_rng(seed), []
        for line in (made.question for made in make_lines(tokenizer, self.rng, case.lines)):
            first = int(np.flatnonzero(line.answers)[0])
            answer = str(tokenizer.decode(line.tokens[line.answers])).strip()
            questions.append(("recall", line.tokens, line.tokens[:first], answer))
        for draft in (niah(self.rng, 0.0, line="\n{}\n") for _ in range(case.lines)):
            line, ending = tokenizer([draft.lines[0], f"{draft.question} {draft.prefix}"])["input_ids"]
            questions.append(("niah_single_1", np.array(line), np.array(ending), draft.answers[0]))
        room = case.length - END - sum(len(line) for _, line, *_ in questions)
        quarters = np.arange(len(questions)) % 4  # their lines end END tokens before the quarter's end
        places = quarters * (room // 4) + self.rng.integers(0, room // 4 - END, len(questions))
        order = np.argsort(places)
        questions = [questions[number] for number in order]
        lines = [KeyValueText(line, np.ones(len(line), dtype=bool)) for _, line, *_ in questions]
        text = interleave(document[:room], lines, places[order].tolist())
        self.tokens, self.planted = text.tokens, text.answers
        ends = places[order] + np.cumsum([len(line) for _, line, *_ in questions])
        self.questions = [(end, kind, *rest) for end, (kind, _, *rest) in zip(ends.tolist(), questions, strict=True)]

    def prompts(self) -> dict[tuple[str, int], list[Prompt]]:
        """Return the prompts by kind and length. Each asks for a line that lies before the question."""
        prompts: dict[tuple[str, int], list[Prompt]] = {}
        for length, count in self.case.questions.items():
            context = self.tokens[: length - END]
            for kind in KINDS:
                lines = [
                    (ending, answer) for end, k, ending, answer in self.questions if k == kind and end <= len(context)
                ]
                chosen = self.rng.choice(len(lines), size=count, replace=False)
                prompts[kind, length] = [
                    Prompt(np.concatenate([context, lines[i][0]]), (lines[i][1],), (), None, 0, len(context))
                    for i in chosen
                ]
        return prompts
