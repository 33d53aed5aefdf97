"""What the local server answers for each kind of question, by rule; and a recipe that asks it everything."""

import hashlib
import json
from typing import Any

import yaml
from PIL import Image

from irg.curation.recipe import DataRecipe
from irg.recipes import build

TEMPLATE = (
    "<think>\nAnalysis: the sky is flat.\nImprovements: {what}.\nSteps: keep the rest; change it.\n"
    "Final prompt: {prompt}, with {what}.\n</think>"
)


def number(*parts: object) -> int:
    """A number that the parts decide."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16)


def words_of(body: dict[str, Any]) -> tuple[str, int]:
    """The text of the first message and how many images come with it."""
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return content, 0
    return content[-1]["text"], len(content) - 1


def prompt_in(text: str) -> str:
    return text.partition("Prompt: ")[2].partition("\n")[0]


def reply(path: str, body: dict[str, Any]) -> Any:
    """A teacher that is right most of the time. What it gets wrong depends on the question alone."""
    if path != "chat/completions":
        width, height = map(int, body["size"].split("x"))
        shade = number(body["prompt"], str(body.get("seed")))
        return Image.new("RGB", (width, height), (shade % 256, shade // 256 % 256, shade // 65536 % 256))
    text, _ = words_of(body)
    prompt, tries = prompt_in(text), len(body["messages"]) // 2
    luck = number("luck", text, body.get("seed"))
    if luck % 5 == 0 and tries == 0 and "Write the thinking" not in text:  # thinking has no form to break
        return "I would rather not say."
    if luck % 11 == 0 and "Write exactly this" in text:
        return "Analysis: I have forgotten the rest."
    if "Write the thinking" in text:
        return f"First a plan for {prompt}, then light from the left."
    if "Two pictures" in text:
        grade = {"following": 6 + luck % 4, "quality": 5}
        better = {"following": 8, "quality": 7 + luck % 3}
        pair = {"A": grade, "B": better, "preservation": 9}
        return f"```json\n{json.dumps(pair)}\n```"
    if "Score it" in text:
        return json.dumps({"following": 5 + luck % 6, "quality": 8})
    return TEMPLATE.format(prompt=prompt, what=f"{2 + luck % 7} clouds")


def recipe_dict(url: str, out: Any, rows: int = 12, timeout_s: float = 60.0, **more: Any) -> dict[str, Any]:
    """All stages on one server, drafts by the mini world."""
    quick = {"url": url, "timeout_s": timeout_s, "longest_wait_s": 0.05, "attempts": 8}
    vlm = quick | {"model": "vlm", "price_per_million_in": 1000.0, "identity": "the vlm"}
    painter = quick | {"model": "painter", "price_per_image": 0.5, "identity": "the painter"}
    return {
        "out": str(out),
        "prompts": {
            "sources": [{"kind": "miniworld", "rows": rows, "repairs": 0.7, "sprites": "builtin"}],
            "repeats": True,
        },
        "filter": {"decontaminate": False, "near_duplicates": None},
        "draft": {"kind": "miniworld", "sprites": "builtin", "size": 32},
        "reflect": {"kind": "endpoint", "endpoint": vlm},
        "target": {"kind": "endpoint", "endpoint": painter, "width": 32, "height": 32},
        "think": {"kind": "endpoint", "endpoint": vlm},
        "judges": [{"kind": "endpoint", "endpoint": vlm, "name": "vlm"}],
        "rows_per_block": 4,
        "concurrent_blocks": 2,
        "export": {"times": False, "validation": 0.2, "keep": {"nothing_wrong": False, "gain": -20.0}},
        **more,
    }


def recipe(url: str, out: Any, rows: int = 12, **more: Any) -> DataRecipe:
    return build(DataRecipe, recipe_dict(url, out, rows, **more))


def recipe_file(path: Any, url: str, out: Any, rows: int = 12, **more: Any) -> str:
    path.write_text(yaml.safe_dump(recipe_dict(url, out, rows, **more)), encoding="utf-8")
    return str(path)
