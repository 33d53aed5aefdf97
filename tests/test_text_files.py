"""The one reader of text: encodings, marks, line ends, and JSON that is text throughout."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irg.text_files import decoded, lines_of, parse_json, read_text

TEXT = "a cat\nein Löwe\n狮子 🦁"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_usual_form_is_the_same_text(tmp_path: Path, encoding: str, end: str) -> None:
    (tmp_path / "t").write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert read_text(tmp_path / "t") == TEXT


@given(st.text().map(lambda text: text.replace("\r", "")))
def test_utf8_with_and_without_a_mark_is_the_same(text: str) -> None:
    assert decoded(b"\xef\xbb\xbf" + text.encode()) == text
    assert text.startswith("\ufeff") or decoded(text.encode()) == text


def test_what_is_no_text_is_told_by_its_line() -> None:
    with pytest.raises(ValueError, match=r"not UTF-8 text \(invalid start byte at byte 9, line 2\)"):
        decoded(b"a cat\nxyz\xff")
    with pytest.raises(ValueError, match="not UTF-16 text"):
        decoded(b"\xff\xfea")


def test_a_file_that_is_too_large_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("abc")
    assert read_text(tmp_path / "t", 3) == "abc"
    with pytest.raises(ValueError, match="larger than 2 bytes"):
        read_text(tmp_path / "t", 2)
    with pytest.raises(ValueError, match="No such file"):
        read_text(tmp_path / "u")


def test_lines_end_at_line_feeds_alone() -> None:
    assert list(lines_of("a\u2028b\n\n c\x0bd\n")) == [(1, "a\u2028b"), (3, " c\x0bd")]


@pytest.mark.parametrize("text", ['"\\ud83d"', '{"a": ["x \\uDE00"]}', '{"\\ud83d": 1}', b'"\\ud83d"'])
def test_half_a_surrogate_pair_is_no_text(text: str) -> None:
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, b"[" * 200_000])
def test_deep_nesting_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(text)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner), max_leaves=9)


@given(JSON)
def test_valid_json_is_read_as_it_is(value: object) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == json.loads(json.dumps(value))
