"""A score to look at: every prompt with the images of its turns, thoughts and verdicts, to filter by what happened.

The page holds its texts; the images are linked where they lie. Its only script shows and hides cards, and keeps what
is chosen in the address, so that a view can be passed on.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from irg.evaluation.benchmarks.benchmark import BENCHMARKS
from irg.evaluation.results import Result
from irg.evaluation.runs import read_record, write_whole
from irg.evaluation.scoring import Judged
from irg.evaluation.table import headline, html_table, tables
from irg.results.reflection import without_tags
from irg.results.report import page

CHANGES = ("repaired", "damaged", "right", "wrong", "mixed", "not judged")
_SHORT_LINE = 160  # characters
_HALF = 0.5  # of a graded score: from here on an image without right and wrong counts as right in the filter

_STYLE = """<style>
.filters { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; align-items: center; margin: 1.4rem 0 1rem;
  position: sticky; top: 0; padding: .6rem 0; background: var(--paper); z-index: 1; }
.filters select, .filters input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: .25rem .5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); gap: 1.1rem; }
.cards .card[hidden] { display: none; }
.cards .prompt { margin: 0 0 .5rem; -webkit-line-clamp: 6; }
.badge { display: inline-block; padding: 0 .55rem; border-radius: 99px; border: 1px solid var(--line);
  font-size: .8rem; }
.repaired { color: var(--good); border-color: currentColor; }
.damaged { color: #b3402e; border-color: currentColor; }
@media (prefers-color-scheme: dark) { .damaged { color: #ff9d8a; } }
.pair figure { flex: 1 1 0; min-width: 0; }
.pair figcaption { margin-top: .25rem; }
.pair img { image-rendering: auto; }
.gone { aspect-ratio: 1; display: grid; place-items: center; border: 1px dashed var(--line); border-radius: 8px;
  color: var(--soft); font-size: .85rem; }
.cards details { margin-top: .6rem; } .cards summary { font-weight: 500; font-size: .9rem; }
.cards .text { font-size: .85rem; }
.why { display: block; font-size: .78rem; overflow-wrap: anywhere; }
.filters label:has(input[type=checkbox]) { cursor: pointer; }
main { max-width: 1440px; }
.none { padding: 2rem; text-align: center; }
</style>"""

_SCRIPT = """<script>
const cards = [...document.querySelectorAll(".cards .card")];
const category = document.getElementById("category"), change = document.getElementById("change");
const words = document.getElementById("words"), count = document.getElementById("count");
const none = document.getElementById("none"), open_all = document.getElementById("open");
function show() {
  let shown = 0;
  const wanted = words.value.trim().toLowerCase();
  for (const card of cards) {
    const fits = (!category.value || card.dataset.category === category.value)
      && (!change.value || (change.value === "gap" ? "gap" in card.dataset : card.dataset.change === change.value))
      && (!wanted || card.dataset.prompt.includes(wanted));
    card.hidden = !fits; shown += fits;
  }
  count.textContent = shown + " of " + cards.length + " shown";
  none.hidden = shown > 0;
  const chosen = new URLSearchParams();
  for (const one of [category, change, words]) if (one.value) chosen.set(one.id, one.value);
  try { history.replaceState(null, "", "#" + chosen); } catch (error) { /* some viewers forbid it */ }
}
function restore() {
  const chosen = new URLSearchParams(location.hash.slice(1));
  for (const one of [category, change, words]) {
    one.value = chosen.get(one.id) || "";
    if (one.selectedIndex === -1) one.value = "";
  }
  show();
}
for (const one of [category, change, words]) one.addEventListener("input", show);
addEventListener("hashchange", restore);
open_all.addEventListener("input", () => {
  for (const one of document.querySelectorAll(".cards details")) one.open = open_all.checked;
});
restore();
</script>"""


@dataclass(frozen=True)
class Entry:
    """One request: the same prompt and sample in each turn, with the thoughts of its trajectory.

    Attributes:
        skips: missing images do not count; else they count as wrong, here as in the table.
    """

    turns: tuple[Judged, ...]
    thoughts: tuple[str | None, ...]
    skips: bool = False

    @property
    def gap(self) -> bool:
        """Whether an image is missing or has no grade."""
        return any(one.grade is None for one in self.turns)

    @property
    def change(self) -> str:
        """Which of :data:`CHANGES` describes it."""
        ends = (self.turns[0], self.turns[-1])
        if any(one.grade is None and (self.skips or one.state != "missing") for one in ends):
            return "not judged"
        known = [one.grade.right or (one.grade.score >= _HALF,) for one in ends if one.grade]
        wrong = (False,) * len(known[0] if known else (False,))
        first, last = ((one.grade.right or (one.grade.score >= _HALF,)) if one.grade else wrong for one in ends)
        if len(self.turns) > 1 and len(first) == len(last):
            gained = sum(not was and is_ for was, is_ in zip(first, last, strict=True))
            lost = sum(was and not is_ for was, is_ in zip(first, last, strict=True))
            if gained != lost:
                return "repaired" if gained > lost else "damaged"
            if gained:
                return "mixed"
        return "right" if all(last) else "wrong"


def entries(items: Sequence[Judged], trajectories: Path | None, skips: bool = False) -> list[Entry]:
    """The judged images by request, with thoughts where there are any; ``skips``: missing ones do not count."""
    grouped: dict[tuple[str, int], list[Judged]] = {}
    for item in items:
        if item.state != "not covered":
            grouped.setdefault((item.prompt.id, item.sample), []).append(item)
    return [_entry(turns, trajectories, skips) for turns in grouped.values()]


def _entry(turns: Sequence[Judged], trajectories: Path | None, skips: bool) -> Entry:
    record: dict[str, Any] = {}
    if trajectories is not None:
        path = trajectories / turns[0].prompt.id / f"{turns[0].sample}.json"
        record = read_record(path) if path.is_file() else {}
    steps = record.get("turns", [])
    return Entry(tuple(turns), tuple(step.get("thinking") for step in steps), skips)


def write_report(folder: Path, result: Result, shown: Sequence[Entry]) -> Path:
    """Write ``index.html`` into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    cards = "\n".join(_card(entry, folder) for entry in shown)
    table = "".join(html_table(one) for one in tables([result]))
    chips = "".join(f"<li><b>{escape(name)}</b> {escape(value)}</li>" for name, value in headline(result))
    title = f"{BENCHMARKS[result.benchmark].title}: {result.model}{f', {result.mode}' if result.mode else ''}"
    body = (
        f'{_STYLE}<header><p class="eyebrow">irg bench · judged by {escape(result.judge)}</p>'
        f'<h1>{escape(title)}</h1><ul class="chips">{chips}</ul></header>{table}{_filters(shown)}'
        f'<section class="cards">\n{cards}\n</section>'
        f'<p id="none" class="none note" hidden>No image is like that.</p>{_SCRIPT}'
    )
    path = folder / "index.html"
    write_whole(path, page(title, body))
    return path


def _filters(shown: Sequence[Entry]) -> str:
    tags = Counter(entry.turns[0].prompt.tag for entry in shown)
    kinds = "".join(_option(tag, tag.replace("_", " "), count) for tag, count in tags.items() if tag)
    kinds += _option("untagged", "untagged", tags[""]) if tags[""] else ""
    happened = Counter(entry.change for entry in shown)
    changes = "".join(_option(name, name, happened[name]) for name in CHANGES if happened[name])
    gaps = sum(entry.gap for entry in shown)
    changes += _option("gap", "missing or not judged", gaps) if gaps else ""
    return (
        '<form class="filters" onsubmit="return false">'
        f'<label>category <select id="category"><option value="">all ({len(shown)})</option>{kinds}</select></label>'
        '<label>what happened <select id="change">'
        f'<option value="">all ({len(shown)})</option>{changes}</select></label>'
        '<label>words <input id="words" type="search"></label>'
        '<label><input id="open" type="checkbox"> open all texts</label>'
        '<span id="count" class="note" role="status"></span></form>'
    )


def _option(value: str, text: str, count: int) -> str:
    return f'<option value="{escape(value)}">{escape(text)} ({count})</option>'


def _card(entry: Entry, folder: Path) -> str:
    first, change = entry.turns[0], entry.change
    prompt = first.prompt
    images = "".join(_figure(one, folder, len(entry.turns)) for one in entry.turns)
    parts = [
        f'<article class="card" data-category="{escape(prompt.tag or "untagged")}" data-change="{change}" '
        f'{"data-gap " if entry.gap else ""}data-prompt="{escape(prompt.text.lower())}">',
        f'<p class="note"><span class="badge {change}">{change}</span> {escape(prompt.tag)} · {escape(prompt.id)}'
        f"{f' · sample {first.sample}' if first.sample else ''}</p>",
        f'<p class="prompt">{escape(prompt.text)}</p><div class="pair">{images}</div>',
    ]
    for number, thought in enumerate(entry.thoughts):
        if thought:
            name = "Reflection" if number else "Thinking"
            parts.append(_details(name if number < 2 else f"Reflection {number}", without_tags(thought)))
    for one in entry.turns:
        if (told := _told(one)) and told != _why(one):
            parts.append(_details(f"Judge on the {_turn(one, len(entry.turns))} image", told))
    return "".join(parts) + "</article>"


def _told(one: Judged) -> str:
    """What the answers came to, then the answers as they stand where they are texts that say more."""
    told = one.grade.detail if one.grade else one.message
    said = [f"{answer}" for answer in one.answers.values() if isinstance(answer, str) and len(answer) > len("Yes.")]
    return "\n\n".join([told, *(answer for answer in said if answer not in told)]).strip()


def _figure(one: Judged, folder: Path, turns: int) -> str:
    label = _turn(one, turns)
    verdict = one.state.replace("_", " ") if one.grade is None else _verdict(one)
    why = f'<span class="why">{escape(_why(one))}</span>' if _why(one) else ""
    caption = f"<figcaption>{escape(label)}: {escape(verdict)}{why}</figcaption>"
    if one.image is None or one.state == "unreadable":
        return f'<figure><div class="gone">{escape(one.state.replace("_", " "))}</div>{caption}</figure>'
    place = one.image.path
    if one.image.tile is not None:
        place = folder / "tiles" / f"{one.prompt.id.replace('/', '-')}-{one.sample}-{one.turn}.png"
        place.parent.mkdir(exist_ok=True)
        one.image.pixels().save(place)
    url = quote(os.path.relpath(place.resolve(), folder.resolve()).replace(os.sep, "/"))
    return f'<figure><a href="{url}"><img src="{url}" alt="{escape(label)} image" loading="lazy"></a>{caption}</figure>'


def _why(one: Judged) -> str:
    """What is wrong, or why there is no grade, where one short line says it: to be read without opening anything."""
    right = () if one.grade is None else one.grade.right or (one.grade.score >= _HALF,)
    told = "; ".join((one.grade.detail if one.grade else one.message).splitlines())
    return told if len(told) <= _SHORT_LINE and (not right or (len(right) == 1 and not all(right))) else ""


def _verdict(one: Judged) -> str:
    assert one.grade is not None
    right = one.grade.right
    if len(right) == 1 and one.grade.score in (0, 1):
        return "right" if right[0] else "wrong"
    return f"{sum(right)} of {len(right)} right" if len(right) > 1 else f"{one.grade.score:.2f}"


def _turn(one: Judged, turns: int) -> str:
    if turns == 1:
        return "final"
    return "initial" if one.turn == 1 else "improved" if one.turn == 2 else f"improved {one.turn - 1}"


def _details(name: str, text: str) -> str:
    return f'<details><summary>{escape(name)}</summary><p class="text">{escape(text)}</p></details>'
