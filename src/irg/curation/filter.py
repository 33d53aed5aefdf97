"""Which prompts are left out, and the report of what benchmarks took out."""

import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from irg import files
from irg.curation import decontaminate
from irg.curation.content import content
from irg.curation.decontaminate import Decontaminator, Neighbors, normalized
from irg.curation.recipe import Filter
from irg.curation.stages import accepted, rejected
from irg.curation.store import Row, StageFolder, digest
from irg.text_files import lines_of, read_text

COLUMNS: dict[str, type] = {"how": str, "benchmark": str, "like": str}
EXAMPLES = 5


def passes_all(settings: Filter) -> bool:
    """Whether the filter has nothing to do."""
    return (
        not settings.decontaminate
        and settings.near_duplicates is None
        and settings.script is None
        and settings.blocklist is None
    )


class PromptFilter:
    """Gives verdicts on prompts in order; a near-duplicate is one of an earlier prompt that passed."""

    def __init__(self, settings: Filter) -> None:
        """Load what prompts are compared with.

        Raises:
            ValueError: a file is missing, or a package.
        """
        self.settings = settings
        self.benchmarks: Decontaminator | None = decontaminate.load(settings) if settings.decontaminate else None
        self._blocklist = _words(settings.blocklist)
        self._near = None if settings.near_duplicates is None else Neighbors()
        self._passed: dict[str, str] = {}  # normalized -> id
        self._last: tuple[str, Row] = ("", {})

    def key(self, prompts_key: str) -> str:
        """Eight digits of what decides the verdicts."""
        found = self.benchmarks.found if self.benchmarks else {}
        settings = content(self.settings) | {"blocked": self._blocklist, "benchmarks": found}
        return digest("filter", 1, prompts_key, settings)[:8]

    def verdict(self, row: Row) -> Row:
        """The verdict on a prompt: accepted, or rejected with the reason. A prompt's samples come one after another
        and share it."""
        if row["prompt"] != self._last[0]:
            self._last = (row["prompt"], self._verdict(row))
        return self._last[1] | {"id": row["id"]}

    def _verdict(self, row: Row) -> Row:
        text = row["prompt"]
        if self.settings.script is not None and not in_script(text, self.settings.script):
            return rejected(row, f"script: not in {self.settings.script} letters") | {"how": "script"}
        if blocked := next((word for word in normalized(text).split() if word in self._blocklist), None):
            return rejected(row, f"blocked: {blocked}") | {"how": "blocked"}
        if self.benchmarks is not None and (hit := self.benchmarks.check(text)) is not None:
            reason = f"benchmark: {hit.benchmark} {hit.prompt_id} ({hit.how}): {hit.text}"
            return rejected(row, reason) | {"how": hit.how, "benchmark": hit.benchmark, "like": hit.text}
        if self._near is not None and self.settings.near_duplicates is not None:
            words = normalized(text)
            near = self._near.nearest(text, self.settings.near_duplicates)
            earlier = self._passed.get(words) or (None if near is None else self._near.names[near[0]])
            if earlier is not None:
                return rejected(row, f"near-duplicate of {earlier}") | {"how": "duplicate", "like": earlier}
            self._near.add(row["id"], text)
            self._passed[words] = row["id"]
        return accepted(row, {"model": "irg.filter"})


def _words(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return sorted({normalized(line) for _, line in lines_of(read_text(path))})
    except ValueError as error:
        raise ValueError(f"filter.blocklist: {path}: {error}") from error


def in_script(text: str, script: str) -> bool:
    """Whether nine in ten letters are of a script, by their Unicode names (``latin``, ``cyrillic``, ``cjk``, ...)."""
    letters = [unicodedata.name(letter, "") for letter in text if letter.isalpha()]
    return not letters or sum(name.startswith(script.upper()) for name in letters) >= 0.9 * len(letters)


def report(folder: StageFolder, prompts: StageFolder, prompt_filter: PromptFilter, out: Path) -> dict[str, Any]:
    """Write ``decontamination.json`` and ``.md``: counts and examples of what benchmarks took out, and whether the
    set is certified. Returns the former."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    examples: dict[str, list[dict[str, str]]] = defaultdict(list)
    total = 0
    for block in folder.blocks():
        verdicts = folder.read(block, ["id", "how", "benchmark", "like"])
        total += len(verdicts)
        hits = {name: row for name, row in verdicts.items() if row["benchmark"] is not None}
        texts = prompts.read(block, ["id", "prompt"]) if hits else {}
        for name, row in hits.items():
            counts[row["benchmark"]][row["how"]] += 1
            if len(examples[row["benchmark"]]) < EXAMPLES:
                found = {"how": row["how"], "prompt": texts[name]["prompt"], "benchmark_prompt": row["like"]}
                examples[row["benchmark"]].append(found)
    known = prompt_filter.benchmarks
    data: dict[str, Any] = {
        "certified": known is not None and known.certified,
        "prompts": total,
        "compared_with": known.found if known else {},
        "not_compared_with": known.missing if known else {"all": "filter.decontaminate is false"},
        "overlap": prompt_filter.settings.overlap,
        "templates": prompt_filter.settings.templates,
        "taken_out": {name: dict(counter) for name, counter in sorted(counts.items())},
        "examples": dict(examples),
    }
    files.write_json(out / "decontamination.json", data)
    files.write_text(out / "decontamination.md", markdown(data))
    return data


def markdown(data: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = ["# Decontamination", ""]
    if data["certified"]:
        lines.append(f"{data['prompts']:,} prompts were compared with all five benchmarks (words, templates, MinHash).")
    else:
        lines.append("**Not certified**: these were not compared with:")
        lines += [f"* {name}: {reason}" for name, reason in data["not_compared_with"].items()]
    lines += ["", "| benchmark | files | exact | template | near |", "|---|---|---|---|---|"]
    for name, compared in data["compared_with"].items():
        taken = data["taken_out"].get(name, {})
        cells = [str(taken.get(how, 0)) for how in ("exact", "template", "near")]
        lines.append(f"| {name} | {compared} | {' | '.join(cells)} |")
    for name, found in data["examples"].items():
        lines += ["", f"## {name}"]
        lines += [f"* {one['how']}: {one['prompt']!r} is {one['benchmark_prompt']!r}" for one in found]
    return "\n".join(lines) + "\n"
