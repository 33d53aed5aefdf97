"""The form in which vision-language models answer as critics: what they are asked, and how strictly it is read."""

import json
import re
from typing import Any

from irg.critics.base import Review, Verdict
from irg.endpoints import refuses

HIGHEST = 10
"""The best score of the form."""
_FIELDS = ("wrong", "change", "done", "score")
_NOTHING = re.compile(r"(?:none|nothing|null|n/?a|no changes?|-|\.)?\.?", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)

_ASK = """You check an image that another model drew for a prompt, so that it can draw a better one.

Prompt: {prompt}
{thinking}
Compare the image with the prompt alone: objects, how many of each, colors, where they are and how they relate, \
attributes, text, style; then obvious defects of the drawing. Keep to what was asked for: what the prompt leaves open \
is right as it is.

Answer with one JSON object that has exactly these four fields, and nothing else:
{{"wrong": "what contradicts the prompt or is badly drawn, concretely; empty if nothing is",
"change": "the instruction for an edit of this image that corrects it, and what must stay as it is; empty if done",
"done": false,
"score": 0}}
done is true if nothing has to change, else false. score is a number from 0 (the image shows nothing of the prompt) to \
10 (it shows all of it, well drawn)."""


def question(review: Review) -> str:
    """What a model is asked about an image, which goes beside this text."""
    thinking = ""
    if review.thinking and review.thinking.strip():
        thinking = f"\nWhat the other model had in mind, which may be wrong:\n{review.thinking.strip()}\n"
    return _ASK.format(prompt=review.prompt, thinking=thinking)


def read(text: str) -> Verdict:
    """The verdict that an answer in the form holds; a code fence may be around it.

    Raises:
        ValueError: it is not in the form; the message says why, in words for the model.
    """
    if refuses(text):
        raise ValueError("it is a refusal, not a JSON object")
    fenced = _FENCE.fullmatch(text.strip())
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_pairs, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not one JSON object and nothing else ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it is not one JSON object and nothing else")
    if set(value) != set(_FIELDS):
        raise ValueError(f"its fields must be exactly {', '.join(_FIELDS)}; it has {', '.join(value) or 'none'}")
    wrong, change = _text(value, "wrong"), _text(value, "change")
    done, score = value["done"], value["score"]
    if not isinstance(done, bool):
        raise ValueError(f"done must be true or false, got {json.dumps(done)}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= HIGHEST:
        raise ValueError(f"score must be a number from 0 to {HIGHEST}, got {json.dumps(score)}")
    if done and change:
        raise ValueError("done is true, but change asks for something")
    if not done and not (wrong and change):
        raise ValueError("done is false, so wrong and change must say what is wrong and what to change")
    return Verdict(wrong, change, done, score / HIGHEST)


def _text(value: dict[str, Any], name: str) -> str:
    """A field's text on one line; empty where it says that there is nothing."""
    if not isinstance(value[name], str):
        raise ValueError(f"{name} must be a text, got {json.dumps(value[name])[:80]}")
    text = " ".join(value[name].split())
    return "" if _NOTHING.fullmatch(text) else text


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a field stands there twice")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
