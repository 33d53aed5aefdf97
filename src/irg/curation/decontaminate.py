"""Decontamination: is a prompt one of a benchmark's? The same words, the same template, or nearly the same words."""

import importlib.util
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from irg import promptsets
from irg.curation.recipe import Filter

_PERMUTATIONS, _ROWS = 64, 4  # 16 bands of 4: a pair at Jaccard 0.7 shares one with 98 %, at 0.8 with 99.98 %
_GRAM = 4

_LEAD = re.compile(
    r"^(?:(?:please )?(?:draw|create|generate|make|show|paint)(?: me)? )?"
    r"(?:(?:a|an|the) )?(?:(?:high quality|realistic|clear) )?"
    r"(?:photo|photograph|picture|image|rendering) (?:of|showing|with) "
)
_NUMBERS = {
    w: str(n)
    for n, w in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_ARTICLES = {"a", "an", "the", "some"}
_RELATIONS = (  # (pattern, sign, whether the second comes first)
    (re.compile(r" (?:is )?(?:to |on )?(?:the )?left (?:side )?of "), "<", False),
    (re.compile(r" (?:is )?(?:to |on )?(?:the )?right (?:side )?of "), "<", True),
    (re.compile(r" (?:is )?(?:above|over|on top of) "), "^", False),
    (re.compile(r" (?:is )?(?:below|under|underneath|beneath) "), "^", True),
)


def normalized(text: str) -> str:
    """Lower-case words without punctuation, accents kept, one space between."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"\w+", folded))


def without_lead(text: str) -> str:
    """Normalized text without "a photo of" and the like."""
    return _LEAD.sub("", normalized(text))


def template_key(text: str) -> str:
    """What a templated prompt says, whatever the wording: things with number, color and relation.

    >>> template_key("a photo of a red apple and two dogs") == template_key("Draw 2 dogs and the red apple")
    False
    >>> template_key("a photo of a dog right of a tie") == template_key("a picture of a tie to the left of a dog")
    True
    """
    body = f" {without_lead(text)} "
    for pattern, sign, swap in _RELATIONS:
        sides = pattern.split(body)
        if len(sides) == 2:
            first, second = map(_phrase, sides)
            return f"{second} {sign} {first}" if swap else f"{first} {sign} {second}"
    return " & ".join(sorted(_phrase(part) for part in re.split(r" and | with | next to | beside ", body)))


def _phrase(text: str) -> str:
    words = [_NUMBERS.get(word, word) for word in text.split() if word not in _ARTICLES]
    return " ".join(_singular(word) for word in words if word != "1")


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("ives"):
        return word[:-3] + "fe"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def grams(text: str) -> frozenset[str]:
    """Runs of four characters of a text without its lead."""
    body = without_lead(text)
    return frozenset(body[i : i + _GRAM] for i in range(max(1, len(body) - _GRAM + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of common members."""
    return len(a & b) / len(a | b)


@cache
def _empty_sketch() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=_PERMUTATIONS)


@lru_cache(16)  # a prompt is compared with the benchmarks, then with the others, then added
def _sketch(text: str) -> Any:
    sketch = _empty_sketch().copy()
    sketch.update_batch([gram.encode() for gram in grams(text)])
    return sketch


class Neighbors:
    """Texts that are similar: candidates by MinHash LSH, the verdict by the Jaccard similarity of the texts."""

    def __init__(self) -> None:
        if importlib.util.find_spec("datasketch") is None:
            raise ValueError(
                "near-duplicates need the package datasketch: pip install 'irg[data]' (or filter.near_duplicates: null)"
            )
        from datasketch import MinHashLSH

        self._index = MinHashLSH(num_perm=_PERMUTATIONS, params=(_PERMUTATIONS // _ROWS, _ROWS))
        self.names: list[str] = []
        self.texts: list[str] = []

    def add(self, name: str, text: str) -> None:
        """Remember a text."""
        self._index.insert(len(self.names), _sketch(text), check_duplication=False)
        self.names.append(name)
        self.texts.append(text)

    def nearest(self, text: str, least: float) -> tuple[int, float] | None:
        """The most similar text known (its index; the first of several) with a Jaccard similarity of at least
        ``least``, and that."""
        own = grams(text)
        candidates = self._index.query(_sketch(text))
        best = max(((jaccard(own, _cached_grams(self.texts[i])), -i) for i in candidates), default=(0.0, 0))
        return (-best[1], best[0]) if best[0] >= least and best[0] > 0 else None


_cached_grams = lru_cache(4096)(grams)


@dataclass(frozen=True)
class Hit:
    """A match of a prompt with a benchmark's."""

    how: str  # exact, template, near
    benchmark: str
    prompt_id: str
    text: str


@dataclass
class Decontaminator:
    """The benchmarks' prompts, ready to compare. ``missing`` names benchmarks that were not found, with the reason."""

    overlap: float
    templates: bool
    found: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    _exact: dict[str, Hit] = field(default_factory=dict)
    _template: dict[str, Hit] = field(default_factory=dict)
    _near: Neighbors | None = None
    _hits: list[Hit] = field(default_factory=list)

    @property
    def certified(self) -> bool:
        """Whether all five benchmarks were compared with."""
        return not self.missing and set(self.found) == set(promptsets.NAMES)

    def learn(self, benchmark: str, prompts: Iterable[tuple[str, str]]) -> None:
        """Take in a benchmark's (id, text) pairs."""
        for name, text in prompts:
            self._exact.setdefault(normalized(text), Hit("exact", benchmark, name, text))
            self._template.setdefault(template_key(text), Hit("template", benchmark, name, text))
            self._hits.append(Hit("near", benchmark, name, text))

    def check(self, text: str) -> Hit | None:
        """The benchmark's prompt that this one is, if it is one."""
        if (hit := self._exact.get(normalized(text))) is not None:
            return hit
        if self.templates and (hit := self._template.get(template_key(text))) is not None:
            return hit
        near = self._neighbors().nearest(text, self.overlap)
        return None if near is None else self._hits[near[0]]

    def _neighbors(self) -> Neighbors:
        """All prompts by MinHash, made at the first use: a caller that only lists what is found need not wait."""
        if self._near is None:
            self._near = Neighbors()
            for hit in self._hits:
                self._near.add(hit.prompt_id, hit.text)
        return self._near


def load(settings: Filter) -> Decontaminator:
    """All benchmarks' prompts that can be found, every variant of them; nothing is fetched.

    Raises:
        ValueError: the folder does not exist.
    """
    known = Decontaminator(settings.overlap, settings.templates)
    for name in promptsets.NAMES:
        digests = []
        for variant in promptsets.SOURCES[name].variants:
            try:
                one = promptsets.load(name, settings.benchmarks, variant=variant, offline=True)
            except ValueError as error:
                if variant == promptsets.SOURCES[name].default:
                    known.missing[name] = " ".join(str(error).split())
                continue
            known.learn(name, ((prompt.id, prompt.text) for prompt in one.prompts))
            digests.append(f"{variant} {one.sha256[:12]}")
        if name not in known.missing:
            known.found[name] = ", ".join(digests)
    return known
