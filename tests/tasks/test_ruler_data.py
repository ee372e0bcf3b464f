"""Essays and questions from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruler_files import ESSAY, hotpotqa, ruler_folder, squad

from longrope.errors import LongRopeError
from longrope.models.load import load_tokenizer
from longrope.tasks.prompts import Prompt
from longrope.tasks.registry import make_prompts
from longrope.tasks.ruler_data import essays_of, hotpotqa_questions, questions_of, squad_questions

TINY = load_tokenizer("tiny")


def prompts(task: str, folder: Path, **fields: Any) -> list[Prompt]:
    return make_prompts(task, TINY, **{"length": 1000, "trials": 1, "ruler_data": str(folder), **fields})


def test_essays_have_single_blanks() -> None:
    assert essays_of(ruler_folder()) == " ".join(ESSAY.split())
    assert essays_of(None) is None


def test_text_files_are_essays_in_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "Second\nessay."), ("a.txt", "First  essay.")):
        (tmp_path / name).write_text(text)
    assert essays_of(str(tmp_path)) == "First essay. Second essay."


def test_rows_of_the_hub_are_the_same_questions() -> None:
    """Of SQuAD and HotpotQA, whose rows have another form than their files."""
    rows = [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": question["question"],
            "answers": {"text": [answer["text"] for answer in question["answers"]], "answer_start": []},
        }
        for article in squad()["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    ours, theirs = squad_questions(rows), questions_of(ruler_folder(), "squad")
    assert (ours.documents, ours.questions) == (theirs.documents, theirs.questions)
    assert len(ours.questions) == len(ours.documents) == 360
    assert {len(question.related) for question in ours.questions} == {2}
    rows = [
        row
        | {
            "context": {
                "title": [title for title, _ in row["context"]],
                "sentences": [lines for _, lines in row["context"]],
            }
        }
        for row in hotpotqa()
    ]
    ours, theirs = hotpotqa_questions(rows), questions_of(ruler_folder(), "hotpotqa")
    assert (ours.documents, ours.questions) == (theirs.documents, theirs.questions)
    assert ours.documents[ours.questions[7].documents[0]] == "Singer 7\nSinger 7 lives in city 7. She sings."


def test_one_of_the_answers_is_enough() -> None:
    (prompt,) = prompts("qa_1", Path(ruler_folder()))
    assert prompt.answers == ("100 feet", "100")
    assert prompt.score("It is 100 metres high.") == 1
    assert prompt.score("It is 10 feet high.") == 0


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LongRopeError, match=r"ruler_data = .*/absent: there is no such folder. Give a folder, or hub"):
        prompts("niah_single_2", tmp_path / "absent")
    for task, name in (("qa_1", "squad.json or dev-v2.0.json"), ("qa_2", "hotpotqa.json or hotpot_dev")):
        with pytest.raises(LongRopeError, match=f"is not there. Give a folder that holds {name}"):
            prompts(task, tmp_path)
        with pytest.raises(LongRopeError, match="ruler_data = None: longrope does not ship the questions of"):
            make_prompts(task, TINY, length=1000, trials=1)
    (tmp_path / "squad.json").write_text("{")
    with pytest.raises(LongRopeError, match=r"cannot read .*squad\.json"):
        prompts("qa_1", tmp_path)
    (tmp_path / "dev-v2.0.json").write_text("[]")
    (tmp_path / "hotpotqa.json").write_text(json.dumps([{"question": "Who?"}]))
    with pytest.raises(LongRopeError, match="hotpotqa has another form: KeyError"):
        prompts("qa_2", tmp_path)


def test_essays_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_bytes("Café. ".encode("cp1252") * 99)
    with pytest.raises(LongRopeError, match=r"essay\.txt': not UTF-8 text\. Convert it"):
        prompts("niah_single_2", tmp_path)
    for number, content in enumerate(([{"text": "It was short."}], {"essays": "It was short."}, {"text": None})):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "PaulGrahamEssays.json").write_text(json.dumps(content))
        with pytest.raises(LongRopeError, match=r'PaulGrahamEssays\.json has no string "text"'):
            prompts("niah_single_2", folder)


def test_a_haystack_that_is_too_short_is_refused(tmp_path: Path) -> None:
    (tmp_path / "essay.txt").write_text("It was short. " * 30)
    with pytest.raises(LongRopeError, match=r"its essays have \d+ tokens, too short a haystack for length 1,000"):
        prompts("niah_multikey_1", tmp_path)
    data = squad()
    (tmp_path / "squad.json").write_text(json.dumps({"data": data["data"][:2]}))
    with pytest.raises(LongRopeError, match=r"all documents together have \d+ tokens, too short a haystack"):
        prompts("qa_1", tmp_path)
    (tmp_path / "hotpotqa.json").write_text(json.dumps(hotpotqa()[:100]))
    with pytest.raises(LongRopeError, match=r"trials = 101: hotpotqa has 100 questions\. Ask for fewer trials"):
        prompts("qa_2", tmp_path, trials=101)
