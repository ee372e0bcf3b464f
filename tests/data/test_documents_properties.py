from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longrope.data.documents import load_documents
from longrope.errors import LongRopeError

# every character but halves of one, in texts that are not blank; odd ends of lines most of all
LETTERS = st.characters(exclude_categories=["Cs"])
ENDS = st.sampled_from("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff\x00")
TEXTS = st.text(LETTERS | ENDS).filter(str.strip)


@given(
    st.lists(TEXTS, min_size=1, max_size=5, unique=True), st.booleans(), st.sampled_from(["\n", "\r\n"]), st.booleans()
)
def test_jsonl_gives_back_the_texts_in_their_order(texts: list[str], ascii_only: bool, end: str, last: bool) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=ascii_only) for text in texts]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_bytes((end.join(lines) + end * last).encode())
        assert [document.text for document in load_documents(str(path))] == texts
        assert [document.name for document in load_documents(str(path))] == [
            f"{path}:{i + 1}" for i in range(len(texts))
        ]


@pytest.mark.filterwarnings("ignore:.*passed over")
@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), TEXTS, min_size=1, max_size=5))
def test_a_folder_holds_each_text_once_in_the_order_of_names(texts: dict[str, str]) -> None:
    """Ends of lines are those of Python's text files; what holds a NUL is no text."""
    read = {
        name: text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        for name, text in sorted(texts.items())
        if "\0" not in text
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, text in texts.items():
            (Path(folder) / f"{name}.txt").write_bytes(text.encode())
        if read:
            assert [one.text for one in load_documents(folder)] == list(dict.fromkeys(read.values()))
        else:
            with pytest.raises(LongRopeError, match="holds no text"):
                load_documents(folder)


@given(st.text(max_size=300) | st.text("ab\0/.\ud800é", max_size=300))
def test_any_name_of_a_source_is_found_or_refused(name: str) -> None:
    """Of this file's folder, where no such name is."""
    with pytest.raises(LongRopeError, match=r"^data = "):
        load_documents(str(Path(__file__).parent / "absent" / name.lstrip("/.")))


@given(st.integers(0xD800, 0xDFFF), st.text(LETTERS, max_size=9))
def test_half_a_character_is_named_with_its_place(half: int, before: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.jsonl"
        path.write_text(f'{{"text": "fine"}}\n{{"text": {json.dumps(before + chr(half))}}}\n', encoding="utf-8")
        with pytest.raises(LongRopeError, match=rf"line 2: .*\\ud{half & 0xFFF:03x}', number {len(before) + 1}\)"):
            load_documents(str(path))
