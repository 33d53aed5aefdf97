"""The report is one self-contained page in which nothing that a user or a model wrote can act."""

import base64
import io

from html_page import HOSTILE, Page
from PIL import Image

from irg.reasoning.settings import Settings
from irg.results.report import render_gallery, render_report
from irg.results.trajectory import Trajectory, Turn


def render(trajectory: Trajectory) -> str:
    return render_report(trajectory.to_dict(), [turn.image for turn in trajectory.turns])


def render_index(entries: list[tuple[str, Trajectory]], title: str = "Results") -> str:
    return render_gallery([(folder, trajectory.to_dict()) for folder, trajectory in entries], title)


T2 = (
    "<think> Analysis: the apple is green. Improvements: recolor it. Steps: keep 2 things, fix 1, add 0, remove 0. "
    "Final prompt: a red apple. </think>"
)


def example(thoughts: list[str | None], size: tuple[int, int] = (128, 96), prompt: str = "an apple") -> Trajectory:
    settings = Settings()
    turns = [
        Turn(thought, Image.new("RGB", size, (n * 40, 9, 9)), settings.draw(n).to_dict(), {"drawing": 1.5}, 12)
        for n, thought in enumerate(thoughts)
    ]
    return Trajectory(prompt, "irg", 7, "mini", settings.to_dict(), turns)


def test_images_are_inlined_losslessly_and_nothing_is_fetched() -> None:
    html = render(example(["think", T2]))
    page = Page(html)
    assert len(page.all("img")) == 2
    for image in page.all("img"):
        head, _, data = image["src"].partition(",")
        assert head == "data:image/png;base64" and image["alt"]
        with Image.open(io.BytesIO(base64.b64decode(data))) as inlined:
            assert inlined.size == (128, 96)
        assert (image["width"], image["height"]) == ("384", "288")  # enlarged by a whole factor
    assert not page.all("script") and not page.all("link") and not page.all("a")
    assert "http" not in html and "url(" not in html and "@import" not in html


def test_thoughts_settings_and_times_are_all_there() -> None:
    page = Page(render(example(["<think> a meadow </think>", T2])))
    for text in (
        "an apple",
        "a meadow",
        "the apple is green.",
        "recolor it.",
        "keep 2 things, fix 1, add 0, remove 0.",
    ):
        assert text in page.text
    for text in (
        "Analysis",
        "Improvements",
        "Steps",
        "Final prompt",
        "cfg_renorm_type",
        "text_channel",
        "1.5 s",
        "seed 7",
    ):
        assert text in page.text
    assert "<think>" not in page.text


def test_a_reflection_without_the_template_is_shown_as_it_is() -> None:
    assert "just some words" in Page(render(example(["x", "just some words"]))).text


def test_hostile_text_stays_text() -> None:
    trajectory = example([HOSTILE, HOSTILE + T2], prompt=HOSTILE)
    trajectory.model = trajectory.version = trajectory.mode = HOSTILE
    trajectory.settings = {HOSTILE: HOSTILE}
    trajectory.turns[0].settings = {HOSTILE: [HOSTILE]}
    trajectory.turns[0].seconds = {HOSTILE: 1.0}
    for html in (render(trajectory), render_index([(HOSTILE, trajectory)], title=HOSTILE)):
        page = Page(html)
        assert not page.all("script") and HOSTILE in page.text
        assert all("onerror" not in attributes for _, attributes in page.elements)


def test_a_last_look_and_an_empty_trajectory() -> None:
    trajectory = example(["x"])
    trajectory.turns.append(Turn("<think> Analysis: nothing is wrong. </think>", None))
    trajectory.stopped = True
    page = Page(render(trajectory))
    assert "Nothing left to improve" in page.text and len(page.all("img")) == 1
    assert "an apple" in Page(render(example([]))).text


def test_sizes_are_enlarged_only_when_small() -> None:
    assert Page(render(example(["x"], (1024, 512)))).all("img")[0]["width"] == "1024"
    tiny = Page(render(example(["x"], (16, 8)))).all("img")[0]
    assert tiny["width"] == "416" and tiny["class"] == "tiny"


def test_the_gallery_links_every_result() -> None:
    page = Page(render_index([("a b", example(["x", "y", "z"])), ("ä%", example(["x"]))]))
    assert [link["href"] for link in page.all("a")] == ["a%20b/report.html", "%C3%A4%25/report.html"]
    images = ["a%20b/initial.png", "a%20b/improved-2.png", "%C3%A4%25/initial.png"]
    assert [image["src"] for image in page.all("img")] == images
    assert "2 results" in page.text
