"""Instructions for vision-language models as teachers and judges, and the parsers of their answers.

The instructions are part of a stage's key: what was made by another wording is made again.
"""

from typing import Any

from irg.curation.store import Row
from irg.endpoints import refuses
from irg.results.reflection import Reflection, sections, without_tags
from irg.text_files import parse_json

THINK = """You teach a model to think before it draws. Here is a prompt, and a picture that fulfils it.

Prompt: {prompt}

Write the thinking that leads from the prompt to such a picture: what the prompt asks for and what it leaves open, the \
subject and every object with its number, colour, attributes and place, the composition, the style, the light. Think \
forward, as if nothing were drawn yet: never mention that there is a picture. One or two paragraphs of plain text, \
at most 250 words, and nothing else."""

_FORM = """Write exactly this, with these four headings, in this order:

<think>
Analysis: what is wrong or weak, named concretely: what is missing, too many, of the wrong colour, in the wrong place, \
badly drawn. If nothing is, write "Nothing is wrong."
Improvements: what the better picture must have. If nothing has to change, write "None."
Steps: how to get there, step by step; also say what must stay as it is.
Final prompt: one comprehensive prompt for the better picture. It must stand alone and keep all that was asked for.
</think>"""

REFLECT = f"""You look at a picture that was drawn for a prompt, and say how to make it better. Keep to what was \
asked: improve detail, quality and what contradicts the prompt; do not change what is right.

Prompt: {{prompt}}

{_FORM}"""

COMPARE = f"""You see two pictures that were drawn for the same prompt: first a draft, then a better one. Write the \
reflection that leads from the draft to the better picture, as if only the draft had been drawn yet: never \
mention that there is a second picture.

Prompt: {{prompt}}

{_FORM}"""

JUDGE = """Two pictures, A and then B, were drawn for one prompt; one of them is a later version of the other. \
Score them.

Prompt: {prompt}

following: how far a picture shows what the prompt asks for: objects, numbers, colours, places, attributes, text.
quality: how well it is drawn: sharpness, anatomy, light, composition, no artefacts.
preservation: how far both show the same scene where neither contradicts the prompt.

All scores are numbers from 0 (not at all) to 10 (perfectly). Judge what you see, not the order. Answer with one JSON \
object and nothing else:
{{"A": {{"following": 0, "quality": 0}}, "B": {{"following": 0, "quality": 0}}, \
"preservation": 0, "why": "one sentence"}}"""

GRADE = """A picture was drawn for this prompt. Score it.

Prompt: {prompt}

following: how far it shows what the prompt asks for: objects, numbers, colours, places, attributes, text.
quality: how well it is drawn: sharpness, anatomy, light, composition, no artefacts.

Both are numbers from 0 (not at all) to 10 (perfectly). Answer with one JSON object and nothing else:
{{"following": 0, "quality": 0, "why": "one sentence"}}"""

EDIT = """Improve this picture, which was drawn for the prompt "{prompt}". {improvements} {steps} The result: \
{final_prompt}"""


def instruction(row: Row, edit: bool = False) -> str:
    """The text for an image model: the prompt; with a reflection on the draft its final prompt, or a whole edit."""
    if row["turns"] == 1 or row.get("reflection") is None:
        return str(row["prompt"])
    found = sections(row["reflection"])
    final = found.get("final prompt") or row["prompt"]
    if not edit:
        return str(final)
    changes = {name: found.get(name, "") for name in ("improvements", "steps")}
    return EDIT.format(prompt=row["prompt"], final_prompt=final, **changes)


def read_json(text: str) -> dict[str, Any]:
    """The one JSON object of an answer, with or without a code fence around it.

    Raises:
        ValueError: there is none.
    """
    start, end = text.find("{"), text.rfind("}")
    try:
        value = parse_json(text[start : end + 1])
    except ValueError as error:
        raise ValueError(f"it holds no JSON object ({error})") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def _score(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 10:
        raise ValueError(f"{name} must be a number from 0 to 10, got {value!r}")
    return float(value)


def read_grade(text: str) -> tuple[float, float]:
    """(following, quality) of a GRADE answer; ValueError names what is wrong."""
    return _grade_of(read_json(text), "")


def _grade_of(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or 'the answer'} must be an object with following and quality")
    return _score(value.get("following"), f"{where}following"), _score(value.get("quality"), f"{where}quality")


def read_judgement(text: str) -> tuple[tuple[float, float], tuple[float, float], float]:
    """(A's grade, B's grade, preservation) of a JUDGE answer; ValueError names what is wrong."""
    value = read_json(text)
    preservation = _score(value.get("preservation"), "preservation")
    return _grade_of(value.get("A"), "A."), _grade_of(value.get("B"), "B."), preservation


def read_thinking(text: str) -> str:
    """T1 of a THINK answer; ValueError if it is empty, too long or gives the image away."""
    thought = without_tags(text)
    if not thought:
        raise ValueError("it is empty")
    if refuses(thought):
        raise ValueError("it is a refusal")
    if len(thought) > 8000:
        raise ValueError(f"it has {len(thought)} characters; at most 250 words are wanted")
    if "the picture shows" in thought.lower() or "the image shows" in thought.lower():
        raise ValueError("it speaks of a picture that is already there; think forward from the prompt")
    return f"<think> {thought} </think>"


def read_reflection(text: str) -> str:
    """T2 in the template; ValueError names the section that is missing or out of place."""
    return Reflection.parse(text).to_text()
