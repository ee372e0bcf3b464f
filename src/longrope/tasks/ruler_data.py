"""The texts that RULER downloads: essays for its haystacks, and the questions of SQuAD and HotpotQA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from longrope.data.text_files import decode
from longrope.errors import LongRopeError

HUB = "hub"
FILES = {  # as RULER's scripts and the data sets' authors name them
    "essays": ("PaulGrahamEssays.json",),
    "squad": ("squad.json", "dev-v2.0.json"),
    "hotpotqa": ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
}
DATASETS = {
    "essays": ("baber/paul_graham_essays", None, "train"),
    "squad": ("rajpurkar/squad_v2", None, "validation"),
    "hotpotqa": ("hotpotqa/hotpot_qa", "distractor", "validation"),
}


@dataclass(frozen=True)
class Question:
    """A question on some documents of a `QuestionSet`.

    Args:
        text: The question.
        answers: Right answers; each of them is enough.
        documents: Indices of the documents that it needs.
        related: Indices of the other documents of the same article.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class QuestionSet:
    """Questions, and all documents that they are asked of."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]


@lru_cache(maxsize=2)
def essays_of(source: str | None) -> str | None:
    """Return the essays with single blanks between words; None where a folder has none or there is no source.

    Args:
        source: Folder of ``PaulGrahamEssays.json`` or text files, ``hub``, or None.

    Raises:
        LongRopeError: If the source cannot be read.
    """
    if source is None:
        return None
    if source == HUB:
        texts = [row["text"] for row in _from_hub("essays")]
    elif (path := _path(source, "essays")) is not None:
        data = _json(path)
        if not isinstance(data, dict) or not isinstance(data.get("text"), str):
            raise LongRopeError(f'ruler_data: {path} has no string "text". Download it again with RULER\'s script.')
        texts = [data["text"]]
    else:
        texts = [decode(file.read_bytes(), file) for file in sorted(Path(source).rglob("*.txt"))]
    return re.sub(r"\s+", " ", " ".join(texts)).strip() or None


@lru_cache(maxsize=2)
def questions_of(source: str | None, name: str) -> QuestionSet:
    """Return the questions of ``squad`` or ``hotpotqa``.

    Args:
        source: Folder with the data set's file, ``hub``, or None.
        name: Key of `FILES`.

    Raises:
        LongRopeError: If the source does not have them.
    """
    path = None if source in (None, HUB) else _path(str(source), name)
    if source != HUB and path is None:
        lacks = f"longrope does not ship the questions of {name}" if source is None else f"{name} is not there"
        raise LongRopeError(
            f"ruler_data = {source}: {lacks}. Give a folder that holds {' or '.join(FILES[name])}, or hub."
        )
    convert = squad_questions if name == "squad" else hotpotqa_questions
    try:
        return convert(_from_hub(name) if path is None else _json(path))
    except (KeyError, TypeError, IndexError) as error:
        raise LongRopeError(f"ruler_data = {source}: {name} has another form: {error!r} is missing.") from None


def _path(source: str, name: str) -> Path | None:
    if not Path(source).is_dir():
        raise LongRopeError(f"ruler_data = {source}: there is no such folder. Give a folder, or hub.")
    return next((path for file in FILES[name] if (path := Path(source) / file).is_file()), None)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise LongRopeError(f"ruler_data: cannot read {path}: {error}. Download it again.") from None


def _from_hub(name: str) -> Iterable[Any]:
    path, config, split = DATASETS[name]
    try:
        load: Callable[..., Any] = import_module("datasets").load_dataset
        return load(path, config, split=split)
    except Exception as error:  # the hub's client raises many kinds
        raise LongRopeError(
            f"ruler_data = hub: cannot load {path} ({type(error).__name__}). Install datasets and be online, or give a "
            f"folder with {FILES[name][0]}."
        ) from None


def squad_questions(data: Any) -> QuestionSet:
    """Return the questions of SQuAD 2 that have an answer, of its JSON file or of the rows of the hub's data set."""
    rows = (
        [(row["title"], row["context"], row["question"], row["answers"]["text"]) for row in data]
        if (not isinstance(data, dict))
        else [
            (article["title"], paragraph["context"], question["question"], [a["text"] for a in question["answers"]])
            for article in data["data"]
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    )
    documents = sorted({context for _, context, _, _ in rows})
    index = {text: number for number, text in enumerate(documents)}
    articles: dict[str, dict[int, None]] = {}
    for title, context, _, _ in rows:
        articles.setdefault(title, {})[index[context]] = None
    questions = [
        Question(text, tuple(dict.fromkeys(answers)), (gold,), tuple(i for i in articles[title] if i != gold))
        for title, context, text, answers in rows
        if answers
        for gold in [index[context]]
    ]
    return QuestionSet(tuple(documents), tuple(questions))


def hotpotqa_questions(data: Any) -> QuestionSet:
    """Return the questions of HotpotQA, of its JSON file or of the rows of the hub's data set."""
    rows = []
    for row in data:
        context = row["context"]
        pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, dict) else context
        rows.append((row["question"], row["answer"], [f"{title}\n{''.join(lines)}" for title, lines in pairs]))
    documents = sorted({text for _, _, texts in rows for text in texts})
    index = {text: number for number, text in enumerate(documents)}
    questions = [Question(text, (answer,), tuple(index[t] for t in texts)) for text, answer, texts in rows]
    return QuestionSet(tuple(documents), tuple(questions))
