"""``--ruler-data hub`` reads what ``datasets`` returns, here from folders with the data sets' names and columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruler_files import ESSAY, hotpotqa, ruler_folder, squad

from longrope.tasks.ruler_data import HUB, essays_of, questions_of

datasets: Any = pytest.importorskip("datasets")


@pytest.fixture
def _hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a folder, from which ``datasets`` loads a name that is a path there, and forget what was read before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for function in (essays_of, questions_of):
        function.cache_clear()
    yield
    for function in (essays_of, questions_of):
        function.cache_clear()


def write(path: str, config: str, split: str, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
    """Write a data set's only split as parquet, with a card that names its configuration."""
    folder = Path(path)
    folder.mkdir(parents=True)
    files = f"data_files: [{{split: {split}, path: {split}.parquet}}]"
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  {files}\n---\n")
    data = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    data.to_parquet(str(folder / f"{split}.parquet"))


@pytest.mark.usefixtures("_hub")
def test_essays_are_joined() -> None:
    half = ESSAY.index(" ", len(ESSAY) // 2)
    write(
        "baber/paul_graham_essays",
        "default",
        "train",
        {"text": [ESSAY[:half], ESSAY[half:]]},
        {"text": datasets.Value("string")},
    )
    assert essays_of(HUB) == essays_of(ruler_folder())


@pytest.mark.usefixtures("_hub")
def test_squad_has_the_questions_of_its_file() -> None:
    rows = [
        (
            article["title"],
            paragraph["context"],
            question["question"],
            [answer["text"] for answer in question["answers"]],
        )
        for article in squad()["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    titles, contexts, questions, answers = zip(*rows, strict=True)
    text = datasets.Value("string")
    columns = {"title": list(titles), "context": list(contexts), "question": list(questions)}
    columns["answers"] = [{"text": texts, "answer_start": [0] * len(texts)} for texts in answers]
    starts = datasets.Sequence({"text": text, "answer_start": datasets.Value("int32")})
    features = {**dict.fromkeys(("title", "context", "question"), text), "answers": starts}
    write("rajpurkar/squad_v2", "default", "validation", columns, features)
    hub, file = questions_of(HUB, "squad"), questions_of(ruler_folder(), "squad")
    assert (hub.documents, hub.questions) == (file.documents, file.questions)


@pytest.mark.usefixtures("_hub")
def test_hotpotqa_has_the_questions_of_its_file() -> None:
    rows, text = hotpotqa(), datasets.Value("string")
    contexts = [
        {"title": [title for title, _ in row["context"]], "sentences": [lines for _, lines in row["context"]]}
        for row in rows
    ]
    columns = {"question": [row["question"] for row in rows], "answer": [row["answer"] for row in rows]}
    context = datasets.Sequence({"title": text, "sentences": datasets.Sequence(text)})
    features = {"question": text, "answer": text, "context": context}
    write("hotpotqa/hotpot_qa", "distractor", "validation", columns | {"context": contexts}, features)
    hub, file = questions_of(HUB, "hotpotqa"), questions_of(ruler_folder(), "hotpotqa")
    assert (hub.documents, hub.questions) == (file.documents, file.questions)
