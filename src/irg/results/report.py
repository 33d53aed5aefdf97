"""A trajectory as one HTML page with all images inlined, and a gallery page of several.

Both take what ``trajectory.json`` holds (:meth:`irg.results.trajectory.Trajectory.to_dict`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from irg.results.folder import REPORT_NAME
from irg.results.pages import duration, plain, render

_SHOWN_SIZE = 420  # pixels; smaller images are enlarged to about this, by a whole factor
_PIXELATED = 64  # images up to this size are enlarged without smoothing


def render_report(
    trajectory: Mapping[str, Any], images: Sequence[Image.Image | None], candidates: Sequence[Image.Image | None] = ()
) -> str:
    """The page of one trajectory; ``images`` has one entry for each turn, ``candidates`` one for each candidate of its
    search."""
    titles = _titles(trajectory)
    turns = [_turn(turn, *title, image) for turn, title, image in zip(trajectory["turns"], titles, images, strict=True)]
    facts = {name: trajectory[name] for name in ("mode", "seed", "model")}
    facts |= {"images": sum(image is not None for image in images), "time": duration(_seconds(trajectory))}
    search = trajectory.get("search")
    drawn = [turn for turn in turns if turn["image"] is not None and not turn["given"]]
    names = dict.fromkeys(name for turn in drawn for name in turn["settings"])
    stages = list(dict.fromkeys(stage for turn in turns for stage in turn["stages"]))
    return render(
        "report.html",
        title=trajectory["prompt"],
        trajectory=trajectory,
        facts=facts,
        turns=turns,
        search=search,
        best=trajectory.get("best"),
        candidates=[] if search is None else _candidates(search, images, candidates, trajectory.get("best")),
        drawn_titles=[turn["title"] for turn in drawn],
        drawn_settings=[[name, *(plain(turn["settings"].get(name)) for turn in drawn)] for name in names],
        request_settings=[[name, plain(v)] for name, v in trajectory["settings"].items() if not isinstance(v, dict)],
        stages=stages,
        timings=[
            [turn["title"], *(duration(turn["stages"].get(stage)) for stage in stages), f"{turn['tokens']} tokens"]
            for turn in turns
            if not turn["given"]
        ],
    )


def render_gallery(entries: Sequence[tuple[str, Mapping[str, Any]]], title: str = "Results") -> str:
    """The page of several results: (folder relative to the page, trajectory) of each. Images are linked."""
    results = []
    for folder, trajectory in entries:
        names = [turn["image"] for turn in trajectory["turns"] if turn["image"] is not None]
        ends = list(dict.fromkeys([*names[:1], *names[-1:]]))
        results.append({"folder": folder, "trajectory": trajectory, "images": ends, "seconds": _seconds(trajectory)})
    return render("gallery.html", title=title, results=results, report_name=REPORT_NAME)


def _titles(trajectory: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What each turn's image and text are called."""
    given = sum(turn.get("given", False) for turn in trajectory["turns"])
    titles = []
    for index, turn in enumerate(trajectory["turns"]):
        round_ = index - max(0, given - 1)
        if index < given:
            title = "Given image" if given == 1 else f"Given image {index + 1}"
        elif trajectory["mode"] in ("edit", "ask"):
            title = "Edited image" if trajectory["mode"] == "edit" else "Image"
        elif round_ == 0:
            title = "First image"
        else:
            title = "Improved image" if round_ == 1 else f"Improved image, round {round_}"
        text = "Thinking" if round_ == 0 or turn.get("reflection") is not None else "Reflection"
        titles.append((title, {"edit": "Thinking", "ask": "Answer"}.get(trajectory["mode"], text)))
    return titles


def _turn(turn: Mapping[str, Any], title: str, text_title: str, image: Image.Image | None) -> dict[str, Any]:
    """What the page shows of a turn."""
    longest = max(image.size) if image else _SHOWN_SIZE
    factor = max(1, math.floor(_SHOWN_SIZE / longest))
    return {
        "title": title,
        "text_title": text_title,
        "given": turn.get("given", False),
        "image": image,
        "factor": factor,
        "pixelated": factor > 1 and longest <= _PIXELATED,
        "thinking": turn["thinking"],
        "reflection": turn.get("reflection"),
        "settings": turn["settings"],
        "stages": turn["seconds"],
        "seconds": sum(turn["seconds"].values()),
        "tokens": turn["tokens"],
        "critic": turn.get("critic"),
    }


def _candidates(
    search: Mapping[str, Any],
    images: Sequence[Image.Image | None],
    others: Sequence[Image.Image | None],
    best: int | None,
) -> list[dict[str, Any]]:
    """What the page shows of each candidate: its image, its seed, the scores of its images."""
    last = next((image for image in reversed(images) if image is not None), None)
    kept = last if best is None else images[best]
    shown = []
    for index, (one, image) in enumerate(zip(search["candidates"], others, strict=True)):
        scores = ", ".join("–" if score is None else f"{score:.2f}" for score in one["scores"])
        chosen = index == search["chosen"]
        shown.append(
            {
                "number": index + 1,
                "seed": one["seed"],
                "scores": scores,
                "chosen": chosen,
                "image": kept if chosen else image,
            }
        )
    return shown


def _seconds(trajectory: Mapping[str, Any]) -> float:
    return sum(sum(turn["seconds"].values()) for turn in trajectory["turns"])
