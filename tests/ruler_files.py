"""A folder with essays and questions in the forms that RULER reads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

ARTICLES, PARAGRAPHS = 120, 3
ESSAY = "".join(f"The {n}th thing to learn\tis to wait.\n\nDoes it  help? It helped {n} of us! " for n in range(900))


def squad() -> dict[str, Any]:
    """Return articles of three paragraphs; each has one question with an answer and one without."""
    return {
        "data": [
            {
                "title": f"Town {article}",
                "paragraphs": [
                    {
                        "context": f"The tower of town {article} in part {number} is {100 + number} feet high.",
                        "qas": [
                            {
                                "question": f"How high is the tower of town {article} in part {number}?",
                                "answers": [{"text": f"{100 + number} feet"}, {"text": str(100 + number)}],
                                "is_impossible": False,
                            },
                            {"question": "Who built it?", "answers": [], "is_impossible": True},
                        ],
                    }
                    for number in range(PARAGRAPHS)
                ],
            }
            for article in range(ARTICLES)
        ]
    }


def hotpotqa() -> list[dict[str, Any]]:
    """Return questions of two documents each."""
    return [
        {
            "question": f"In which land lies the home of singer {n}?",
            "answer": f"Land {n}",
            "context": [
                [f"Singer {n}", [f"Singer {n} lives in city {n}.", " She sings."]],
                [f"City {n}", [f"City {n} lies in Land {n}."]],
            ],
        }
        for n in range(300)
    ]


@cache
def ruler_folder() -> str:
    """Return the folder, written once."""
    folder = Path(mkdtemp())
    for name, data in (("squad", squad()), ("hotpotqa", hotpotqa()), ("PaulGrahamEssays", {"text": ESSAY})):
        (folder / f"{name}.json").write_text(json.dumps(data))
    return str(folder)
