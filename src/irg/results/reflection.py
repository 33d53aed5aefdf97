"""Reading a reflection: the text a model writes after looking at its image, in the paper's template.

A ``<think>`` block with four sections in this order: what falls short (analysis), the improvements that are required,
step-by-step guidance, and a final prompt for the next image. Models vary the headings, so numbers, Markdown and
longer names are understood, in a line of their own or amid a line (``Analysis: ... Improvements: ...``).
"""

import re
from dataclasses import dataclass

SECTIONS = ("analysis", "improvements", "steps", "final prompt")

_NAMES = {
    "analysis": r"(?:(?:detailed|critical|image|picture|visual|current)[ ]){0,2}analysis(?:[ ]of[ ][\w ']{1,60})?",
    "improvements": (
        r"(?:(?:detailed|required|necessary|specific|key)[ ]){0,2}"
        r"improvements?(?:[ ](?:requirements?|required|needed|points|areas|goals|to[ ]make))?"
        r"|areas[ ](?:for|of)[ ]improvement|requirements[ ]for[ ]improvement"
    ),
    "steps": (
        r"(?:(?:step[- ]by[- ]step|detailed|concrete)[ ]){0,2}"
        r"(?:(?:modification|editing|improvement|guidance)[ ])?(?:steps|guidance|guide|instructions|modifications|plan)"
    ),
    "final prompt": (
        r"(?:(?:final|complete|full)[ ])(?:(?:comprehensive|improved|refined|updated|complete|image)[ ]){0,2}prompt"
        r"(?:[ ]for[ ][\w ]{1,60})?|comprehensive[ ]prompt|improved[ ]prompt"
    ),
}
# A heading is a name with a colon (bold, numbered, marked at will), or a name alone on its line, so marked.
_HEADING = (
    r"(?:(?<=[.!?;:)\n>*])|^)[ \t]{{0,4}}"
    r"(?P<mark>(?:\#{{1,6}}[ \t]{{0,4}}|[-*][ \t]{{1,4}})?(?:\*\*)?"
    r"(?:(?:step[ ])?\d{{1,2}}[.):][ \t]{{0,4}})?(?:\*\*)?)"
    r"(?:{name})"
    r"(?:(?:\*\*)?[ \t]{{0,4}}[:：](?:\*\*)?|(?P<alone>(?:\*\*)?[ \t]{{0,4}}(?=\r?\n|\Z)))"
)
_PATTERNS = {name: re.compile(_HEADING.format(name=names), re.IGNORECASE) for name, names in _NAMES.items()}

_NOTHING = re.compile(
    r"nothing (?:is|seems|looks|appears) (?:wrong|amiss|missing|left to (?:improve|change|fix))"
    r"|nothing (?:needs|has) to (?:be )?(?:change|improve|fix)\w*|nothing to (?:improve|change|fix)"
    r"|(?:there (?:are|is) )?no (?:\w+ )?(?:flaws?|issues?|problems?|errors?|mistakes?|shortcomings?)"
    r"(?: (?:remain|are left|were found|found|are visible))?"
    r"|no (?:further )?(?:improvements?|changes?) (?:is|are) (?:needed|necessary|required)"
    r"|everything is (?:right|correct|as asked)",
    re.IGNORECASE,
)
_NONE = re.compile(r"(?:none|nothing|no (?:further )?(?:improvements?|changes?))\b", re.IGNORECASE)


@dataclass(frozen=True)
class Reflection:
    """The four sections of a reflection, each without its heading."""

    analysis: str
    improvements: str
    steps: str
    final_prompt: str

    @classmethod
    def parse(cls, text: str) -> "Reflection":
        """Read a reflection.

        Raises:
            ValueError: a section is missing or empty, or stands before one that should precede it; it is named.
        """
        found = sections(text)
        missing = [name for name in SECTIONS if not found.get(name)]
        if missing:
            raise ValueError(f"the reflection has no section {', '.join(map(repr, missing))} (in its place)")
        return cls(found["analysis"], found["improvements"], found["steps"], found["final prompt"])

    def to_text(self) -> str:
        """The reflection in the template, which :meth:`parse` reads back."""
        return (
            f"<think> Analysis: {self.analysis} Improvements: {self.improvements} Steps: {self.steps} "
            f"Final prompt: {self.final_prompt} </think>"
        )


def sections(text: str) -> dict[str, str]:
    """The sections that are there, in order; a section ends where a later one begins. Never fails."""
    body = without_tags(text)
    found: list[tuple[str, int, int]] = []
    position = 0
    for name in SECTIONS:
        match = _find(name, body, position)
        if match:
            found.append((name, match.start(), match.end()))
            position = match.end()
    starts = [start for _, start, _ in found] + [len(body)]
    return {name: body[begin:end].strip() for (name, _, begin), end in zip(found, starts[1:], strict=False)}


def first_sentence(text: str) -> str:
    """The first sentence of a reflection's analysis: what is in the image, where it begins with that. Of a text without
    an analysis, its own first sentence."""
    return _analysis(text).partition(". ")[0].removesuffix(".") + "."


def after_first_sentence(text: str) -> str:
    """The rest of a reflection's analysis: what is wrong; empty where there is no more."""
    return _analysis(text).partition(". ")[2].removesuffix(".")


def _analysis(text: str) -> str:
    return " ".join(sections(text).get("analysis", without_tags(text)).split())


def is_done(text: str) -> bool:
    """Whether a reflection says that nothing is left to improve: its analysis says so, and it asks for nothing."""
    found = sections(text)
    analysis = found.get("analysis")
    if analysis is None:
        return False
    wants = found.get("improvements", "")
    sentences = [sentence.strip(" !\n") for sentence in analysis.split(".")]
    if _NOTHING.fullmatch(sentences[0]):
        return not wants or bool(_NONE.match(wants))
    # An analysis may first describe what it sees, and then say that nothing of it is wrong.
    last = next((sentence for sentence in reversed(sentences) if sentence), "")
    return bool(_NOTHING.fullmatch(last)) and bool(_NONE.match(wants))


def without_tags(text: str) -> str:
    """The text between ``<think>`` and ``</think>``; either tag may be missing."""
    _, opened, inside = text.partition("<think>")
    return (inside if opened else text).partition("</think>")[0].strip()


def _find(name: str, body: str, position: int) -> re.Match[str] | None:
    for match in _PATTERNS[name].finditer(body, position):
        if match["alone"] is None or match["mark"]:
            return match
    return None
