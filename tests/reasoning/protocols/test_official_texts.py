"""Texts read from a file on a server: found by sha256, cached, refused when changed, nothing half kept."""

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from irg.downloads import Origin
from irg.reasoning.protocols.official_texts import OfficialText, find_texts, read_own_text, read_texts
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS

SOURCE = '''
"""The file's docstring."""
PROMPT = "Look at it " "and \\u00e9 say." \'\'\'
Twice. \'\'\'
def sentence(prompt, think_text):
    word = "\\d"
    return f"Apply {think_text} to" f" {prompt.strip()!r:>3} in {{braces}}."
'''
CONSTANT = "Look at it and é say.\nTwice. "
TEMPLATE = "Apply {think_text} to {prompt.strip()} in {braces}."


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Home:
    """A server of files that breaks off in the middle of those named in ``cut``."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    requested: list[str] = field(default_factory=list)

    def text(self, path: str, content: str, terms: str = "free") -> OfficialText:
        origin = Origin("example.org/x", "c" * 40, "MIT", terms, self.url)  # type: ignore[arg-type]
        return OfficialText(origin, path, sha256(content), len(content), 1234)


@pytest.fixture
def home() -> Iterator[Home]:
    served = Home(files={"a.py": SOURCE.encode(), "b.txt": "Ein Text ü.\n".encode()})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.removeprefix("/")
            served.requested.append(path)
            content = served.files.get(path, b"")
            self.send_response(200 if path in served.files else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if path in served.cut else content)

        def log_message(self, *_: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{running.server_port}/"
    yield served
    running.shutdown()
    running.server_close()


def kept(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("text", [CONSTANT, TEMPLATE, "The file's docstring.", "\\d"])
def test_strings_of_a_python_file(text: str) -> None:
    assert find_texts("a.py", SOURCE.encode(), {sha256(text)}) == {sha256(text): text}


@pytest.mark.parametrize("text", ["A line.\nAnother.\n", "A line.\nAnother."])
def test_a_text_file_with_and_without_its_final_newline(text: str) -> None:
    assert find_texts("b.txt", b"A line.\nAnother.\n", {sha256(text)}) == {sha256(text): text}


@pytest.mark.parametrize(
    "path, content, message",
    [
        ("a.py", b"TEXT = 'another'", "a.py has no text of sha256 "),
        ("b.txt", b"another", "b.txt has no text of sha256 "),
        ("a.py", b"TEXT = (", "not readable as Python"),
        ("a.py", b"TEXT = '\xff'", "not readable as Python"),
        ("b.txt", b"\xff", "utf-8"),
    ],
)
def test_what_is_not_the_pinned_file(path: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_texts(path, content, {sha256("wanted")})


def test_a_file_is_announced_and_downloaded_once(home: Home, tmp_path: Path) -> None:
    said: list[str] = []
    texts = [home.text("a.py", TEMPLATE), home.text("b.txt", "Ein Text ü."), home.text("a.py", CONSTANT)]
    found = read_texts(texts, lambda line: said.append(f"{line} {home.requested}"), cache_dir=tmp_path)
    assert found == [TEMPLATE, "Ein Text ü.", CONSTANT]
    assert home.requested == ["a.py", "b.txt"]
    assert said[0] == (
        f"Downloading 2 texts (80 characters) in a.py of example.org/x at cccccccccccc: 1.2 kB, into {tmp_path}/texts. "
        "License: MIT. []"
    )
    assert said[1].startswith("Downloading 1 text (11 characters) in b.txt")
    assert sorted(kept(tmp_path)) == sorted(f"{text.sha256}.txt" for text in texts)  # nothing of the Python file
    assert read_texts(texts, said.append, offline=True, cache_dir=tmp_path) == found
    assert len(home.requested) == len(said) == 2


def test_the_license_is_told_with_its_limits(home: Home, tmp_path: Path) -> None:
    said: list[str] = []
    home.text("a.py", CONSTANT, "non-commercial").read(said.append, cache_dir=tmp_path)
    assert said[0].endswith("NON-COMMERCIAL use only.")


def test_a_damaged_cache_is_fetched_again(home: Home, tmp_path: Path) -> None:
    text = home.text("a.py", CONSTANT)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / f"{text.sha256}.txt").write_bytes(b"\xff spoiled")
    assert text.read(lambda _: None, cache_dir=tmp_path) == CONSTANT
    assert text.read(lambda _: None, offline=True, cache_dir=tmp_path) == CONSTANT


def test_offline(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = home.text("a.py", CONSTANT)
    message = "downloading is off.*a.py of example.org/x at cccccccccccc.*--system-prompt-file"
    with pytest.raises(ValueError, match=message):
        text.read(lambda _: None, offline=True, cache_dir=tmp_path)
    monkeypatch.setenv("IRG_OFFLINE", "1")
    with pytest.raises(ValueError, match=message):
        text.read(lambda _: None, cache_dir=tmp_path)
    assert not home.requested and not kept(tmp_path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda home: home.files.update({"a.py": b"PROMPT = 'changed'"}), "is not the pinned file"),
        (lambda home: home.files.pop("a.py"), "404"),
        (lambda home: home.cut.add("a.py"), "Connection broken|not readable as Python|is not the pinned file"),
    ],
)
def test_a_file_that_can_not_be_had(home: Home, tmp_path: Path, damage: object, message: str) -> None:
    damage(home)  # type: ignore[operator]
    with pytest.raises(ValueError, match=message) as caught:
        home.text("a.py", CONSTANT).read(lambda _: None, cache_dir=tmp_path)
    assert home.url + "a.py" in str(caught.value) and "--system-prompt-file" in str(caught.value)
    assert not kept(tmp_path)


@pytest.mark.parametrize(
    "content, text",
    [
        ("Schau hin.\n", "Schau hin."),
        ("One.\n\n", "One.\n"),
        (" two", " two"),
        ("\ufeffü\r\nx\r\n", "ü\nx"),
    ],
)
def test_a_text_of_ones_own(tmp_path: Path, content: str, text: str) -> None:
    (tmp_path / "own.txt").write_bytes(content.encode())
    assert read_own_text(tmp_path / "own.txt") == text


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "can't be read: No such file"),
        (b"\xff", "can't be read: not UTF-8 text .* at byte 0"),
        (b" \n", "has no text"),
        (b"x" * 65537, "can't be read: larger than 65,536 bytes"),
    ],
)
def test_a_text_of_ones_own_that_is_none(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"system prompt {tmp_path}/own.txt: {message}"):
        read_own_text(tmp_path / "own.txt")


def test_every_text_is_pinned() -> None:
    texts = [text for protocol in PINNED_TEXTS.values() for text in protocol.values()]
    for text in texts:
        assert len(text.sha256) == 64 and len(text.origin.commit) == 40 and text.origin.license
        assert text.url == (
            f"https://raw.githubusercontent.com/{text.origin.repository.removeprefix('github.com/')}/"
            f"{text.origin.commit}/{text.path}"
        )
    lengths = {text.sha256: text.length for text in texts}
    assert all(text.length == lengths[text.sha256] for text in texts)  # one text has one length wherever it stands


@pytest.mark.network
@pytest.mark.parametrize("protocol", PINNED_TEXTS)
def test_the_official_home_has_every_text(protocol: str, tmp_path: Path) -> None:
    texts = list(PINNED_TEXTS[protocol].values())
    found = read_texts(texts, lambda _: None, cache_dir=tmp_path)
    assert [len(text) for text in found] == [text.length for text in texts]
