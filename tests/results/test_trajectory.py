"""Trajectories on disk: an exact round trip, clear refusals, and never a half-written folder."""

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from irg import files as module
from irg.reasoning.settings import Settings
from irg.results.metadata import read_png_settings
from irg.results.trajectory import Trajectory, Turn
from irg.version import __version__


def image(seed: int, size: tuple[int, int] = (24, 16), mode: str = "RGB") -> Image.Image:
    channels = {"RGB": 3, "RGBA": 4, "LA": 2}.get(mode)
    shape = (size[1], size[0]) if channels is None else (size[1], size[0], channels)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8), mode)


def example(turns: int = 2, prompt: str = "three red äpfel, 苹果 <b>&") -> Trajectory:
    settings = Settings()
    return Trajectory(
        prompt=prompt,
        mode="irg" if turns > 1 else "direct",
        seed=2**60 + 1,
        model="mini",
        settings=settings.to_dict(),
        turns=[
            Turn(f"<think> thought {n}\n</think>", image(n), settings.draw(n).to_dict(), {"drawing": 0.1 + n}, 7 + n)
            for n in range(turns)
        ],
    )


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("turns", [0, 1, 2, 4])
def test_load_gives_back_what_save_wrote(tmp_path: Path, turns: int) -> None:
    trajectory = example(turns)
    folder = trajectory.save(tmp_path / "deep" / "out")
    assert Trajectory.load(folder) == trajectory
    names = ["initial.png", "improved.png", "improved-2.png", "improved-3.png"][:turns]
    assert files_in(folder) == {"trajectory.json", "report.html", *names}
    assert files_in(tmp_path / "deep") == {"out", *(f"out/{name}" for name in files_in(folder))}


VERDICT = {"name": "endpoint:m", "wrong": "blue", "change": "make it red", "done": False, "score": 0.4, "cost": 0.5}
FAILURE = {"name": "endpoint:m", "failed": "outage", "error": "<HTTP 500>", "fallback": "keep"}


def test_a_critic_is_kept_counted_and_shown(tmp_path: Path) -> None:
    trajectory = example(3)
    assert "critic" not in trajectory.to_dict()["turns"][1]
    trajectory.turns[1].critic, trajectory.turns[2].critic = {**VERDICT, "cached": True}, FAILURE
    folder = trajectory.save(tmp_path / "out")
    assert Trajectory.load(folder) == trajectory and trajectory.cost == 0.5
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Critic <b>endpoint:m</b> · score 0.40 · not done · cost 0.5 · from the cache" in page
    assert "The critic endpoint:m failed (outage: &lt;HTTP 500&gt;). The image before this stays." in page


@pytest.mark.parametrize(
    ("critic", "told"),
    [
        (["endpoint:m"], r"turns\[0\].critic must be of type dict"),
        ({"name": "endpoint:m"}, r"turns\[0\].critic.wrong is missing"),
        (VERDICT | {"score": "high"}, r"turns\[0\].critic.score must be of type int or float"),
        ({"failed": "outage", "name": "m", "error": ""}, r"turns\[0\].critic.fallback is missing"),
    ],
)
def test_a_critic_that_can_not_be_read_is_named(tmp_path: Path, critic: Any, told: str) -> None:
    folder = example(1).save(tmp_path / "out")
    data = json.loads((folder / "trajectory.json").read_text(encoding="utf-8"))
    data["turns"][0]["critic"] = critic
    (folder / "trajectory.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=told):
        Trajectory.load(folder)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pixels_are_kept_in_every_mode(tmp_path: Path, mode: str) -> None:
    trajectory = example(1)
    trajectory.turns[0].image = image(5, mode=mode)
    assert Trajectory.load(trajectory.save(tmp_path / "out")) == trajectory


def test_a_last_look_without_an_image(tmp_path: Path) -> None:
    trajectory = example(2)
    trajectory.turns.append(Turn("<think> Analysis: nothing is wrong. </think>", None))
    trajectory.stopped = True
    loaded = Trajectory.load(trajectory.save(tmp_path / "out"))
    assert loaded == trajectory and loaded.stopped
    assert loaded.image == trajectory.turns[1].image
    assert loaded.reflection == "<think> Analysis: nothing is wrong. </think>"


def test_what_is_asked_most_is_at_hand() -> None:
    two, one, none = example(2), example(1), example(0)
    assert two.image is two.turns[1].image and two.initial_image is two.turns[0].image
    assert two.thinking == two.turns[0].thinking and two.reflection == two.turns[1].thinking
    assert two.tokens == 15 and two.seconds == pytest.approx(1.2)
    assert one.reflection is None and one.image is one.initial_image
    assert none.image is none.initial_image is none.thinking is none.reflection is None


def test_images_carry_their_settings(tmp_path: Path) -> None:
    trajectory = example(2)
    folder = trajectory.save(tmp_path / "out")
    details = read_png_settings(folder / "improved.png")
    assert details["prompt"] == trajectory.prompt and details["seed"] == trajectory.seed and details["turn"] == 1
    assert details["settings"] == trajectory.turns[1].settings and details["irg_version"] == __version__
    assert Settings.from_dict(details["request_settings"]) == Settings()
    with Image.open(folder / "improved.png") as image:
        prompt, _, line = image.info["parameters"].rpartition("\n")
    assert prompt == trajectory.prompt
    assert line.startswith("Steps: 50, Sampler: Euler, CFG scale: 4.0, Image CFG scale: 2.0, ")
    assert f"Seed: {trajectory.seed}, Size: 24x16, Model: mini" in line


def test_images_without_settings_are_told_apart(tmp_path: Path) -> None:
    image(1).save(tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name, told in [
        ("plain.png", "carries no irg settings"),
        ("text.png", "not a readable PNG"),
        ("no.png", "No such"),
    ]:
        with pytest.raises(ValueError, match=told):
            read_png_settings(tmp_path / name)


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    trajectory = example(1)
    (tmp_path / "empty").mkdir()
    trajectory.save(tmp_path / "empty")
    with pytest.raises(FileExistsError, match="holds an earlier result"):
        trajectory.save(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=r"holds other files \(thesis\.tex\)"):
            trajectory.save(tmp_path / "other", overwrite=overwrite)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileExistsError, match="is a file"):
        trajectory.save(tmp_path / "file", overwrite=True)
    assert files_in(tmp_path / "other") == {"thesis.tex"}


def test_overwriting_leaves_nothing_of_the_earlier_result(tmp_path: Path) -> None:
    example(4).save(tmp_path / "out")
    second = example(1, "another prompt")
    second.save(tmp_path / "out", overwrite=True)
    assert Trajectory.load(tmp_path / "out") == second
    assert files_in(tmp_path) == {"out", "out/initial.png", "out/trajectory.json", "out/report.html"}


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def ctrl_c(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("fault", [full_disk, ctrl_c])
@pytest.mark.parametrize("nth", range(4))
def test_a_fault_while_writing_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, nth: int
) -> None:
    """Every file is written, then synced: fail at the nth sync, with and without an earlier result in place."""
    before = example(1, "the earlier one")
    before.save(tmp_path / "out")
    there = files_in(tmp_path)
    calls = iter(range(100))
    real = module.os.fsync
    monkeypatch.setattr(module.os, "fsync", lambda fd: fault() if next(calls) == nth else real(fd))
    with pytest.raises((OSError, KeyboardInterrupt)):
        example(2).save(tmp_path / "out", overwrite=True)
    calls = iter(range(100))
    with pytest.raises((OSError, KeyboardInterrupt)):
        example(2).save(tmp_path / "new")
    assert files_in(tmp_path) == there
    assert Trajectory.load(tmp_path / "out") == before


def test_a_fault_while_renaming_puts_the_earlier_result_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = example(1, "the earlier one")
    before.save(tmp_path / "out")
    there = files_in(tmp_path)
    real, calls = Path.rename, iter(range(100))
    monkeypatch.setattr(
        Path,
        "rename",
        lambda self, to: (
            full_disk() if self.is_dir() and to == tmp_path / "out" and next(calls) == 0 else real(self, to)
        ),
    )
    with pytest.raises(OSError, match="No space"):
        example(2).save(tmp_path / "out", overwrite=True)
    monkeypatch.undo()
    assert files_in(tmp_path) == there and Trajectory.load(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: t.settings.update(bad=object()), "can't be written as JSON"),
        (lambda t: t.turns[0].seconds.update(drawing=float("nan")), "can't be written as JSON"),
        (lambda t: setattr(t, "prompt", "a\ud800"), "can't be written as JSON"),
        (lambda t: setattr(t.turns[0], "image", Image.new("CMYK", (2, 2))), "turn 0: an image of mode CMYK"),
    ],
)
def test_what_cannot_be_saved_unchanged_is_refused(tmp_path: Path, spoil: Any, told: str) -> None:
    trajectory = example(1)
    spoil(trajectory)
    with pytest.raises(ValueError, match=told):
        trajectory.save(tmp_path / "out")
    assert files_in(tmp_path) == set()


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (["schema_version"], 2, "schema_version 2 is not known"),
        (["prompt"], 5, "prompt must be of type str"),
        (["seed"], True, "seed must be of type int"),
        (["turns"], {}, "turns must be of type list"),
        (["turns", 0], 5, r"turns\[0\] must be a JSON object"),
        (["turns", 1, "tokens"], "x", r"turns\[1\]\.tokens must be of type int"),
        (["turns", 1, "seconds"], {"a": "b"}, r"turns\[1\]\.seconds\.a must be a number"),
        (["turns", 0, "image"], "../out/initial.png", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "/etc/passwd", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "..\\x.png", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "report.html", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "link.png", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "\0.png", "not the plain name of a PNG file"),
        (["turns", 0, "image"], "gone.png", "image gone.png: No such file"),
        (["turns", 0, "image"], "cut.png", "image cut.png: "),
        (["turns", 0, "image"], "jpeg.png", "image jpeg.png: "),
    ],
)
def test_damage_is_named_when_loading(tmp_path: Path, path: list[Any], value: Any, told: str) -> None:
    folder = example(2).save(tmp_path / "out")
    (folder / "cut.png").write_bytes((folder / "initial.png").read_bytes()[:-300])
    image(1).save(folder / "jpeg.png", format="JPEG")
    image(1).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    data = json.loads((folder / "trajectory.json").read_text(encoding="utf-8"))
    *parents, last = path
    place = data
    for name in parents:
        place = place[name]
    place[last] = value
    (folder / "trajectory.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match=told) as caught:
        Trajectory.load(folder)
    assert str(folder / "trajectory.json") in str(caught.value)


def test_a_missing_or_broken_json_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trajectory\.json: No such file"):
        Trajectory.load(tmp_path)
    for content, told in [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", ""),
    ]:
        (tmp_path / "trajectory.json").write_bytes(content)
        with pytest.raises(ValueError, match=rf"trajectory\.json: .*{told}"):
            Trajectory.load(tmp_path)
