"""Dockerfile and compose.yaml say what the project is; neither is built here."""

import re
from pathlib import Path
from typing import Any

import yaml

from irg.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def dockerfile() -> list[list[str]]:
    """The instructions, word by word."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    return [line.split(maxsplit=1) for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line.strip()]


def test_what_is_copied_is_there_and_let_through() -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        word for name, rest in dockerfile() if name == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    ]
    assert len(copied) == 5
    for word in copied:
        name = word.removeprefix("./")
        assert (ROOT / name).exists() and name in let_through, word


def test_build_arguments_name_this_torch_and_existing_extras() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    arguments = dict(rest.split("=", 1) for name, rest in dockerfile() if name == "ARG")
    assert set(arguments["EXTRAS"].split(",")) <= set(project["optional-dependencies"])
    assert arguments["TORCH"] == "cpu"
    tested = re.search(r"^torch>=([\d.]+),", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tested is not None and arguments["TORCH_VERSION"] == f"{tested[1]}.*"


def test_the_command_is_one_and_insists_on_keys(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("IRG_API_KEYS", raising=False)
    words = next(rest for name, rest in dockerfile() if name == "CMD" and "serve" in rest)
    assert main(yaml.safe_load(words)) == 2  # a list of JSON is one of YAML
    assert "give API keys" in capsys.readouterr().err


def test_compose_runs_the_same_image() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    arguments = {rest.partition("=")[0] for name, rest in dockerfile() if name == "ARG"}
    assert set(services["irg"]["build"]["args"]) <= arguments
    assert services["irg-cuda"]["extends"] == {"service": "irg"}
    assert all(port.startswith("127.0.0.1:") for port in services["irg"]["ports"])  # not to the world by default
    assert "IRG_API_KEYS" in services["irg"]["environment"] and services["irg"]["read_only"]
