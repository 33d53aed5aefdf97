"""Prompt sets: reading the official layouts, fetching with a cache, and what is said when there is no network."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from irg import promptsets
from irg.downloads import Origin
from irg.promptsets.fetch import fetch
from irg.promptsets.prompt_set import combined_sha256
from irg.promptsets.sources import SOURCES, PinnedFile, PromptSource

GENEVAL_LINE = {"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "a photo of two dogs"}


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_registry_names_the_five_with_pins() -> None:
    assert promptsets.NAMES == ("geneval", "wise", "tiif", "genai_bench", "oneig")
    for source in SOURCES.values():
        for files in source.variants.values():
            assert files
            for file in files:
                assert len(file.sha256) == 64 and file.bytes > 0 and file.remote
                assert all(url.startswith("https://") for url in file.urls)
    assert len(SOURCES["tiif"].variants["testmini"]) == 78
    assert SOURCES["oneig"].origins("en")[0].terms == "non-commercial"
    assert {SOURCES[name].origins(SOURCES[name].default)[0].terms for name in ("wise", "tiif")} == {"unlicensed"}


def test_geneval_lines(tmp_path: Path) -> None:
    odd = {**GENEVAL_LINE, "prompt": "a photo\u2028of two dogs\x85"}
    file = write(tmp_path / "mine.jsonl", "\n\n".join(json.dumps(x, ensure_ascii=False) for x in (GENEVAL_LINE, odd)))
    found = promptsets.load("geneval", file)
    assert [(p.id, p.tag) for p in found.prompts] == [("00000", "counting"), ("00001", "counting")]
    assert found.prompts[1].text == odd["prompt"]
    assert found.prompts[0].metadata["include"] == [{"class": "dog", "count": 2}]
    assert not found.official and "own files" in found.label
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_tiif_pairs_prompts_with_questions(tmp_path: Path) -> None:
    prompts = [{"type": "color+2d", "short_description": f"s{i}", "long_description": f"l{i}"} for i in range(2)]
    entries = [{"type": "color+2d", "yn_question_list": ["Q?"], "yn_answer_list": ["Yes"]} for _ in range(2)]
    file = write(tmp_path / "x_prompts" / "color+2d_prompts.jsonl", "\n".join(map(json.dumps, prompts)) + "\n")
    without = promptsets.load("tiif", file).prompts
    assert [p.id for p in without] == ["color+2d/short/0", "color+2d/long/0", "color+2d/short/1", "color+2d/long/1"]
    assert "questions" not in without[0].metadata
    questions = tmp_path / "x_eval_prompts" / "color+2d_eval_prompts.jsonl"
    write(questions, "\n".join(map(json.dumps, entries)))
    assert promptsets.load("tiif", file).prompts[3].metadata["questions"] == ["Q?"]
    write(questions, json.dumps({**entries[0], "yn_answer_list": []}))
    with pytest.raises(ValueError, match="1 questions, but 0 answers"):
        promptsets.load("tiif", file)


def test_genai_bench_takes_skills_beside_it(tmp_path: Path) -> None:
    file = write(tmp_path / "genai_image.json", json.dumps({"00003": {"prompt": "x"}, "00007": {"prompt": "y"}}))
    write(tmp_path / "genai_skills.json", json.dumps({"advanced": [7], "counting": [7]}))
    first, second = promptsets.load("genai-bench", file).prompts
    assert (first.tag, second.tag) == ("", "advanced")
    assert second.metadata["skills"] == ["advanced", "counting"]


def test_oneig_joins_its_files(tmp_path: Path) -> None:
    write(
        tmp_path / "OneIG-Bench.csv",
        "category,id,prompt_en,type,prompt_length,class\n"
        'Portrait,001,"a man, smiling",NP,short,\nText_Rendering,002,a sign,NP,short,\n',
    )
    write(tmp_path / "text_content.csv", ",id,prompt_en,text_content\n0,002,a sign,\"['STOP', 'it''s']\"\n")
    entry = {"question": '{"1": "A man?", "2": "Smiling?"}', "dependency": '{"1": [0], "2": [1]}'}
    write(tmp_path / "Q_D" / "human.json", json.dumps({"001": entry}))
    man, sign = promptsets.load("oneig", tmp_path / "OneIG-Bench.csv").prompts
    assert (man.id, man.text, sign.id) == ("human/001", "a man, smiling", "text/002")
    assert man.metadata["questions"]["2"] == "Smiling?" and man.metadata["dependency"]["2"] == [1]
    assert sign.metadata["text_content"] == ["STOP", "its"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("geneval", "{", "line 1: not valid JSON"),
        ("geneval", '{"prompt": "x", "tag": "y"}', "line 1: the field 'include' is missing"),
        ("geneval", "", "contains no prompt"),
        ("wise", "{}", "expected a JSON list"),
        ("wise", '[{"Prompt": "x", "Category": "y", "prompt_id": true}]', "'prompt_id' must be of type int"),
        ("genai_bench", '{"x": {"prompt": "y"}}', "expected a number"),
        ("oneig", "category,id\nPortrait,1\n", "column 'prompt_en' is missing"),
        ("oneig", "category,id,prompt_en\nPortrait,../../1,a man\n", "is no id"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = write(tmp_path / "file.json", content)
    with pytest.raises(ValueError, match=message) as caught:
        promptsets.load(name, file)
    assert str(file) in str(caught.value)


def test_wrong_names_and_paths(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'geneval'"):
        promptsets.load("genevl", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'testmini'"):
        promptsets.load("tiif", tmp_path, variant="testmin")
    with pytest.raises(ValueError, match="no such file or folder"):
        promptsets.load("geneval", tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"evaluation_metadata\.jsonl is missing"):
        promptsets.load("geneval", tmp_path)


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--prompts PATH") as caught:
        promptsets.load("geneval", offline=True, cache_dir=tmp_path)
    assert "https://raw.githubusercontent.com/djghosh13/geneval/" in str(caught.value)


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """Serves /good; everything else is a 404. Yields its address and the requested paths."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200 if self.path == "/good" else 404)
            self.end_headers()
            self.wfile.write(b"content")

        def log_message(self, *_: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}/", requested
    running.shutdown()
    running.server_close()


def source(url: str, *places: str, sha256: str = hashlib.sha256(b"content").hexdigest()) -> PromptSource:
    origin = Origin("example.org/x", "c" * 40, "CC-BY-NC-4.0", "non-commercial", url)
    file = PinnedFile("sub/a.json", sha256, 7, tuple((origin, place) for place in places))
    return PromptSource("geneval", "X", {"v": (file,)})


def test_a_download_is_announced_and_done_once(server: tuple[str, list[str]], tmp_path: Path) -> None:
    url, requested = server
    said: list[str] = []
    found = fetch(source(url, "gone", "good"), "v", tmp_path, False, lambda text: said.append(f"{text} {requested}"))
    assert found["sub/a.json"].read_bytes() == b"content"
    assert len(said) == 1 and "NON-COMMERCIAL" in said[0] and "example.org/x" in said[0] and said[0].endswith("[]")
    assert requested == ["/gone", "/good"]
    fetch(source(url, "gone", "good"), "v", tmp_path, True, said.append)
    assert len(requested) == 2 and len(said) == 1
    found["sub/a.json"].write_bytes(b"spoiled")  # a damaged cache is fetched again
    fetch(source(url, "good"), "v", tmp_path, False, said.append)
    assert found["sub/a.json"].read_bytes() == b"content"


KILLED = """
import os, pickle, sys, time
from pathlib import Path
from irg.promptsets.fetch import fetch
replace = Path.replace
def die(path, target):
    if target.name == "b.json":
        while not target.with_name("a.json").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), 9)
    replace(path, target)
Path.replace = die
fetch(pickle.load(sys.stdin.buffer), "v", Path(sys.argv[1]), False, print)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
def test_a_killed_download_goes_on(server: tuple[str, list[str]], tmp_path: Path) -> None:
    """Killed as the second file is about to get its name: that one alone is downloaded again, and nothing is left."""
    url, requested = server
    file = source(url, "good").variants["v"][0]
    both = PromptSource("geneval", "X", {"v": (replace(file, path="a.json"), replace(file, path="b.json"))})
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, input=pickle.dumps(both), stdout=subprocess.DEVNULL).returncode == -9
    assert sorted(path.name[:5] for path in tmp_path.rglob("*.json")) == [".tmp-", "a.jso"]
    assert fetch(both, "v", tmp_path, False, lambda _: None)["b.json"].read_bytes() == b"content"
    assert sorted(path.name for path in tmp_path.rglob("*.json")) == ["a.json", "b.json"]
    assert len(requested) == 3


def test_a_changed_file_is_refused(server: tuple[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sha256 differs"):
        fetch(source(server[0], "good", sha256="0" * 64), "v", tmp_path, False, lambda _: None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_combined_sha256_does_not_depend_on_order() -> None:
    assert combined_sha256({"a": "1"}) == "1"
    assert (
        combined_sha256({"a": "1", "b": "2"})
        == combined_sha256({"b": "2", "a": "1"})
        != combined_sha256({"a": "2", "b": "1"})
    )


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "variant", "count", "tags"),
    [
        ("geneval", "original", 553, {"color_attr": 100, "single_object": 80, "two_object": 99}),
        ("geneval", "rewritten", 553, {"position": 100}),
        ("wise", "legacy", 1000, {"Biology": 100}),
        ("tiif", "testmini", 554, {"text": 60}),
        ("tiif", "full", 5076, {}),
        ("genai_bench", "1600", 1600, {"basic": 722, "advanced": 871, "": 7}),
        ("oneig", "en", 1120, {"anime": 245, "human": 244, "object": 206, "text": 200, "reasoning": 225}),
    ],
)
def test_official_sets(official: Path, name: str, variant: str, count: int, tags: dict[str, int]) -> None:
    if any(not (official / name / file.path).is_file() for file in SOURCES[name].variants[variant]):
        pytest.skip(f"{official / name} does not have the whole prompt set {variant!r}")
    found = promptsets.load(name, official, variant=variant)
    if not found.official:
        pytest.skip("the prompt files there are not the official ones")
    assert len(found) == count
    have = [prompt.tag for prompt in found.prompts]
    assert {tag: have.count(tag) for tag in tags} == tags
    assert len(found.by_id()) == count
