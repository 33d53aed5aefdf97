"""Prompts of a taxonomy with quotas, expanded by a grammar or by a model behind an endpoint: kind ``taxonomy``."""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from irg.curation.content import content
from irg.curation.parts import Prompt, Source
from irg.curation.resources import Resources
from irg.curation.sources import file_hash
from irg.deprecation import renamed, warn
from irg.endpoints import Endpoint
from irg.reasoning.settings import check_prompt
from irg.recipes import choose
from irg.text_files import parse_json

_SLOT = re.compile(r"\{(?:(a|s) )?(\w+)\}")
_RENAMED = {"colours": "colors"}  # categories, earlier name -> name
_TABLE = Path(__file__).with_name("taxonomy.yaml")

EXPAND = """Write {count} prompts for a text-to-image model, all in English and all of the category \
"{category}", such as:

{examples}

Be far more varied than these: other subjects, other wordings, other lengths. Each must be checkable in a picture. \
Answer with a JSON list of {count} strings and nothing else."""


@dataclass(frozen=True)
class TaxonomySource(Source):
    """So many prompts of each category of the taxonomy, by grammar or by a model behind an endpoint."""

    kind: Literal["taxonomy"]
    quotas: dict[str, int]
    endpoint: Endpoint | None = None
    temperature: float = 1.0
    prompts_per_call: int = renamed(was="together", default=20)

    def __post_init__(self) -> None:
        for old, new in _RENAMED.items():
            if old in self.quotas:
                warn(f"quotas.{old}", new)
        quotas = {_RENAMED.get(name, name): count for name, count in self.quotas.items()}
        object.__setattr__(self, "quotas", quotas)

    def content(self) -> Any:
        check(self.quotas)
        return content(self) | {"grammar": file_hash(_TABLE)}

    def endpoints(self) -> list[Endpoint]:
        return [] if self.endpoint is None else [self.endpoint]

    async def prompts(self, seed: int, resources: Resources) -> AsyncIterator[Prompt]:
        if self.endpoint is None:
            for category, text in by_grammar(self, seed):
                yield Prompt(text, f"taxonomy/{category}", "Apache-2.0")
            return
        async for category, text in by_endpoint(self, seed, resources):
            yield Prompt(check_prompt(text), f"taxonomy/{category} by {self.endpoint.model}", "model output")


@cache
def _table() -> dict[str, Any]:
    import yaml

    data: dict[str, Any] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return data


def categories() -> list[str]:
    """The taxonomy's categories."""
    return list(_table()["categories"])


def check(quotas: dict[str, int]) -> None:
    """Refuse quotas that cannot be met.

    Raises:
        ValueError: a category is unknown, or a quota negative.
    """
    for name, count in quotas.items():
        if name not in categories():
            raise ValueError(
                f"quotas.{name}: no such category{choose(name, categories())}; there are {', '.join(categories())}"
            )
        if count < 0:
            raise ValueError(f"quotas.{name}: must not be negative, got {count}")


def sentence(category: str, rng: np.random.Generator) -> str:
    """A random prompt of a category."""
    templates = _table()["categories"][category]
    used: set[str] = set()
    text = _fill(templates[int(rng.integers(len(templates)))], rng, used)
    return text[0].upper() + text[1:] if text.endswith(".") else text


def _fill(template: str, rng: np.random.Generator, used: set[str]) -> str:
    def replace(match: re.Match[str]) -> str:
        form, slot = match.groups()
        word = _pick(slot, rng, used)
        if form == "a":
            return word if word.startswith(("a ", "an ", "the ")) else f"{_article(word)} {word}"
        return plural(word) if form == "s" else word

    return _SLOT.sub(replace, template)


def _pick(slot: str, rng: np.random.Generator, used: set[str]) -> str:
    entries = _table()["slots"][slot]
    for _ in range(50):
        entry = str(entries[int(rng.integers(len(entries)))])
        word = _fill(entry, rng, used) if "{" in entry else entry
        if word not in used:
            break
    used.add(word)
    return word


def _article(word: str) -> str:
    return "an" if word[0].lower() in "aeiou" else "a"


def plural(noun: str) -> str:
    """The plural of a noun of the table, or of words that end in one."""
    special: dict[str, str] = _table()["plurals"]
    for one, many in special.items():
        if noun == one or noun.endswith(f" {one}"):
            return noun.removesuffix(one) + many
    if re.search(r"(s|x|z|ch|sh)$", noun) or noun.endswith(("mango", "tomato")):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def by_grammar(source: TaxonomySource, seed: int) -> Iterator[tuple[str, str]]:
    """(category, prompt) until all quotas are met; no prompt comes twice.

    Raises:
        ValueError: the grammar has fewer different sentences than a quota.
    """
    for category, count in source.quotas.items():
        rng = np.random.default_rng([seed, *category.encode()])
        seen: set[str] = set()
        for _ in range(count):
            for _ in range(200):
                if (text := sentence(category, rng)) not in seen:
                    break
            else:
                raise ValueError(
                    f"quotas.{category}: the grammar runs dry after {len(seen):,} prompts; lower the quota, or give "
                    "the source an endpoint"
                )
            seen.add(text)
            yield category, text


def read_list(text: str) -> list[str]:
    """The strings of an EXPAND answer; ValueError says what is wrong."""
    try:
        found = parse_json(text[text.find("[") : text.rfind("]") + 1])
    except ValueError as error:
        raise ValueError(f"it holds no JSON list ({error})") from None
    if not isinstance(found, list) or not all(isinstance(one, str) and one.strip() for one in found) or not found:
        raise ValueError("it must be a JSON list of strings")
    return [" ".join(one.split()) for one in found]


async def by_endpoint(source: TaxonomySource, seed: int, resources: Resources) -> AsyncIterator[tuple[str, str]]:
    """(category, prompt) by a model, each call primed with other sentences of the grammar; no prompt comes twice.

    Raises:
        ValueError: the model repeats itself so much that a quota is not met.
        EndpointError: a call fails.
    """
    assert source.endpoint is not None
    client = await resources.client(source.endpoint)
    for category, count in source.quotas.items():
        seen: set[str] = set()
        for call in range(4 + 4 * -(-count // source.prompts_per_call)):
            if len(seen) >= count:
                break
            rng = np.random.default_rng([seed, call, *category.encode()])
            examples = "\n".join(f"- {sentence(category, rng)}" for _ in range(5))
            text = EXPAND.format(count=source.prompts_per_call, category=category, examples=examples)
            answer = await client.chat(
                [{"role": "user", "content": text}],
                temperature=source.temperature,
                max_tokens=150 * source.prompts_per_call,
                seed=(seed + call) % 2**31,
                check=read_list,
            )
            for prompt in answer.value:
                if prompt not in seen and len(seen) < count:
                    seen.add(prompt)
                    yield category, prompt
        if len(seen) < count:
            raise ValueError(f"quotas.{category}: the model gave only {len(seen)} different prompts of {count}")
