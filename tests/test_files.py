"""Files are whole or not there; JSON lines survive a kill; a lock keeps a second process out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from irg.files import JsonLines, locked, read_json_lines, sweep, temporary_name, write_json, written, written_folder


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(RuntimeError), written(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as raised:
        write_json(tmp_path / "file" / "a.json", {})
    assert "file" in str(raised.value.filename) and ".tmp-" not in str(raised.value.filename)
    path = tmp_path / "a.txt"
    with pytest.raises(FileNotFoundError) as raised, written(path) as temporary:
        temporary.unlink()
    assert raised.value.filename == str(path)


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    place = tmp_path / "out"
    place.mkdir()
    (place / "old").write_text("old")
    with pytest.raises(RuntimeError), written_folder(place) as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    assert [entry.name for entry in place.iterdir()] == ["old"]
    with written_folder(place) as temporary:
        (temporary / "new").write_text("new")
    assert [entry.name for entry in place.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_leftovers_of_the_dead_are_swept(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    temporary_name(deep / "file").write_text("")
    temporary_name(tmp_path / "folder").mkdir()
    (tmp_path / "kept").write_text("")
    with written(deep / "alive") as file, written_folder(tmp_path / "new") as folder:
        file.write_text("x")
        sweep(tmp_path)
        assert [*deep.iterdir()] == [file] and folder.is_dir()
    sweep(tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "kept", "new"]
    assert (deep / "alive").read_text() == "x"


def test_a_lock_sweeps_its_folder(tmp_path: Path) -> None:
    temporary_name(tmp_path / "file").write_text("")
    with locked(tmp_path / ".lock", "no"):
        assert [entry.name for entry in tmp_path.iterdir()] == [".lock"]


KILLED = """
import os, sys
from pathlib import Path
from irg import files
place = Path(sys.argv[1])
if sys.argv[2] == "writing":
    with files.written_folder(place) as temporary:
        (temporary / "half").write_text("")
        os.kill(os.getpid(), 9)
rename = Path.rename
def die(path, target):
    if target == place:
        os.kill(os.getpid(), 9)  # what was there is set aside, the new one is not yet in its place
    rename(path, target)
Path.rename = die
with files.written_folder(place) as temporary:
    (temporary / "half").write_text("")
"""


@pytest.mark.skipif(os.name == "nt", reason="needs locks that end with their process")
@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_a_killed_writer_of_a_folder_leaves_what_was_there(tmp_path: Path, moment: str) -> None:
    place = tmp_path / "out"
    place.mkdir()
    (place / "old").write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, str(place), moment])
    assert len([*tmp_path.iterdir()]) == 2
    with pytest.raises(RuntimeError), written_folder(place):
        assert [entry.name for entry in place.iterdir()] == ["old"]
        raise RuntimeError
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("cut", [b'{"n": 2', b'{"n": 2}', b"\xff", b'{"text": "' + b"x" * 200_000])
def test_a_line_cut_in_half_is_dropped_and_work_goes_on(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n' + cut)
    with JsonLines(path) as lines:
        lines.append({"n": 3})
    assert read_json_lines(path) == [{"n": 1}, {"n": 3}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n"\n{"n": 3}\n')
    with pytest.raises(ValueError, match=r"lines\.jsonl, line 2"):
        read_json_lines(path)
    path.write_bytes(b"[1]\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object"):
        read_json_lines(path)
    assert read_json_lines(tmp_path / "none.jsonl") == []


def test_a_lock_keeps_a_second_process_out_and_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from irg.files import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), 'busy'):\n    print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "a.lock"
    command = [sys.executable, "-c", code, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(ValueError, match="busy"), locked(path, "busy"):
        pass
    process.kill()
    process.wait()
    with locked(path, "busy"):
        pass
