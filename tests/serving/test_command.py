"""``irg serve``: what it refuses before it loads a model."""

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from irg.cli.main import main


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    logs = [logging.getLogger(name) for name in ("irg.serve", "uvicorn.error")]
    before = [(log.handlers, log.propagate, log.level) for log in logs]
    yield
    for log, (handlers, propagate, level) in zip(logs, before, strict=True):
        log.handlers, log.propagate = handlers, propagate
        log.setLevel(level)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: give API keys"),
        (["--port", "70000"], "port must be from 0 to 65535"),
        (["--max-rounds", "0"], "max_rounds must be above 0"),
        (["--api-keys", "/nowhere/keys"], "can't read the API keys"),
        (["--public-url", "example.org"], "public_url must begin with http"),
        (["--allow-critics", "mini-compar"], "no critic 'mini-compar' (did you mean 'mini-compare'?)"),
        (["--allow-origins", "example.org"], "allow_origins: 'example.org' is no web page's origin"),
        (["--allow-origins", "https://example.org/"], "allow_origins: 'https://example.org/' is no web page's"),
    ],
)
def test_mistakes(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *words]) == 2
    assert said in capsys.readouterr().err


def test_not_in_the_processes_of_torchrun(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["serve"]) == 2
    assert "irg serve runs in one process, not in those of torchrun" in capsys.readouterr().err


def test_a_key_is_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from irg.serving.auth import ApiKeys

    assert main(["serve", "--new-key", "alice"]) == 0
    key, line = (text.rpartition(": ")[2] for text in capsys.readouterr().out.splitlines())
    (tmp_path / "keys").write_text(line)
    keys = ApiKeys()
    keys.add_file(str(tmp_path / "keys"))
    assert keys.name_of(f"Bearer {key}") == "alice"


def test_a_model_that_is_not_there_ends_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", "/nowhere/model", "--port", "0"]) == 2
    assert "irg serve: error: unknown model '/nowhere/model'" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err
