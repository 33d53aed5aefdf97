"""A trajectory as one HTML page that needs nothing else (images are inlined), and a gallery page of several.

All texts come from users and models, so everything is escaped; the pages hold no script.
"""

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from irg.results.reflection import sections, without_tags

if TYPE_CHECKING:
    from irg.results.trajectory import Trajectory, Turn

_SHOWN_SIZE = 420  # pixels; smaller images are enlarged to about this, by a whole factor
_LONG_PROMPT = 160  # characters; longer ones are set smaller

_STYLE = """
:root { color-scheme: light dark; --paper: #f6f6f3; --card: #fff; --ink: #1d1f24; --soft: #5d626d; --line: #e0e0da;
  --accent: #2f5fd0; --good: #1b7a4b; --tint: #eef2fc; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --card: #1d2026; --ink: #e9eaee; --soft: #a2a8b4;
  --line: #323640; --accent: #9db8ff; --good: #6fd3a1; --tint: #232a3a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2.2rem 1.25rem 3rem; }
.eyebrow { margin: 0 0 .3rem; color: var(--soft); font-size: .85rem; letter-spacing: .02em; }
h1 { margin: 0 0 .8rem; font-size: clamp(1.35rem, 3.2vw, 2rem); line-height: 1.25; font-weight: 650; text-wrap: balance;
  overflow-wrap: anywhere; white-space: pre-wrap; }
h1.long { font-size: 1.05rem; font-weight: 500; line-height: 1.5; max-height: 16em; overflow: auto; text-wrap: wrap; }
h2 { margin: 0 0 .7rem; font-size: 1.05rem; font-weight: 650; }
h3 { margin: 1.1rem 0 .3rem; font-size: .95rem; font-weight: 650; }
h4 { margin: .8rem 0 .1rem; font-size: .8rem; font-weight: 650; color: var(--soft); letter-spacing: .03em; }
.chips { display: flex; flex-wrap: wrap; gap: .4rem; margin: 0 0 1.6rem; padding: 0; list-style: none;
  font-size: .85rem; }
.chips li { padding: .12rem .65rem; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  overflow-wrap: anywhere; }
.chips b { font-weight: 500; color: var(--soft); }
.turns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 1.1rem;
  align-items: start; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.2rem 1.3rem;
  min-width: 0; }
figure { margin: 0; }
figure a { display: block; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; border-radius: 8px;
  background: var(--tint); }
.small { image-rendering: auto; }
.tiny { image-rendering: pixelated; }
figcaption { margin-top: .5rem; color: var(--soft); font-size: .82rem; text-align: center; }
.text { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .95rem; }
.final { padding: .55rem .75rem; border-left: 3px solid var(--accent); background: var(--tint);
  border-radius: 0 8px 8px 0; }
.done { margin: .2rem 0 0; padding: .6rem .8rem; border-radius: 8px; color: var(--good); border: 1px solid currentColor;
  font-size: .95rem; }
.below { margin-top: 1.1rem; }
details { margin-top: 1.1rem; }
details.first { margin-top: 0; }
summary { cursor: pointer; font-weight: 650; }
.scroll { overflow-x: auto; margin-top: .7rem; }
.tables { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: start; }
.differs { font-weight: 650; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .32rem 1.8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: anywhere; }
tbody th { font-weight: 500; color: var(--soft); white-space: nowrap; }
tbody tr:last-child > * { border-bottom: 0; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
footer { margin-top: 1.6rem; color: var(--soft); font-size: .82rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 1.1rem;
  margin: 0; padding: 0; list-style: none; }
.gallery a { display: block; color: inherit; text-decoration: none; height: 100%; }
.gallery a:hover .prompt { text-decoration: underline; }
.pair { display: flex; gap: .5rem; align-items: start; }
.pair img { flex: 1 1 0; min-width: 0; width: 100%; height: auto; border-radius: 8px; background: var(--tint); }
.prompt { display: -webkit-box; -webkit-line-clamp: 4; -webkit-box-orient: vertical; overflow: hidden;
  margin: .7rem 0 .2rem;  overflow-wrap: anywhere; }
.note { margin: 0; color: var(--soft); font-size: .82rem; }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""


def render(trajectory: "Trajectory") -> str:
    """The whole page for one trajectory."""
    turns = "\n".join(_turn(turn, index, trajectory.stopped) for index, turn in enumerate(trajectory.turns))
    long = ' class="long"' if len(trajectory.prompt) > _LONG_PROMPT else ""
    body = (
        f'<header><p class="eyebrow">Interleaving Reasoning Generation</p><h1{long}>{escape(trajectory.prompt)}</h1>'
        f"{_chips(trajectory)}</header>\n"
        f'<section class="turns" aria-label="Turns">\n{turns}\n</section>\n'
        f'<section class="card below" aria-label="Settings and timings">'
        f"{_settings(trajectory)}{_timings(trajectory)}</section>\n"
        f"<footer>Made with irg {escape(trajectory.version)}.</footer>"
    )
    return page(trajectory.prompt, body)


def render_index(entries: Sequence[tuple[str, "Trajectory"]], title: str = "Results") -> str:
    """A gallery: (folder relative to the page, trajectory) of each result. Images are linked, not inlined."""
    cards = "\n".join(_gallery_card(folder, trajectory) for folder, trajectory in entries)
    count = f"{len(entries)} result{'' if len(entries) == 1 else 's'}"
    body = (
        f'<header><p class="eyebrow">Interleaving Reasoning Generation</p><h1>{escape(title)}</h1>'
        f'<ul class="chips"><li>{count}</li></ul></header>\n<ul class="gallery">\n{cards}\n</ul>'
    )
    return page(title, body)


def page(title: str, body: str) -> str:
    """A whole HTML page in the house style around ``body``, which must be escaped already."""
    title = title if len(title) <= 80 else f"{title[:77]}..."
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · irg</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        "</body>\n</html>\n"
    )


def _chips(trajectory: "Trajectory") -> str:
    facts = {"mode": trajectory.mode, "seed": trajectory.seed, "model": trajectory.model}
    facts |= {"images": sum(turn.image is not None for turn in trajectory.turns)}
    facts |= {"time": _duration(trajectory.seconds)}
    items = "".join(f"<li><b>{name}</b> {escape(str(value))}</li>" for name, value in facts.items())
    return f'<ul class="chips">{items}</ul>'


def _turn(turn: "Turn", index: int, stopped: bool) -> str:
    if turn.image is not None:
        drawn = _duration(sum(turn.seconds.values()))
        caption = f"{turn.image.width} × {turn.image.height} px · {drawn}"
        image = f"<figure>{_image(turn.image, _title(index))}<figcaption>{caption}</figcaption></figure>"
    else:
        why = "Nothing left to improve: the image before this stays." if stopped else "No image was drawn."
        image = f'<p class="done">{why}</p>'
    title = _title(index) if turn.image is not None else "Another look"
    return f'<article class="card"><h2>{title}</h2>{image}{_thought(turn.thinking, index)}</article>'


def _title(index: int) -> str:
    if index == 0:
        return "First image"
    return "Improved image" if index == 1 else f"Improved image, round {index}"


def _image(image: Image.Image, label: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    factor = max(1, math.floor(_SHOWN_SIZE / max(image.size)))
    kind = ' class="tiny"' if max(image.size) <= 64 else ' class="small"'
    size = f'width="{image.width * factor}" height="{image.height * factor}"'
    return f'<img src="data:image/png;base64,{data}" alt="{escape(label)}" {size}{kind if factor > 1 else ""}>'


def _thought(text: str | None, index: int) -> str:
    if not text:
        return ""
    heading = "Reflection" if index else "Thinking"
    found = sections(text) if index else {}
    if len(found) < 2:
        return f'<h3>{heading}</h3><p class="text">{escape(without_tags(text))}</p>'
    parts = [f"<h3>{heading}</h3>"]
    for name, section in found.items():
        kind = "text final" if name == "final prompt" else "text"
        parts.append(f'<h4>{name.capitalize()}</h4><p class="{kind}">{escape(section)}</p>')
    return "".join(parts)


def _settings(trajectory: "Trajectory") -> str:
    shared = [[name, _value(value)] for name, value in trajectory.settings.items() if not isinstance(value, dict)]
    drawn = {_title(index): turn.settings for index, turn in enumerate(trajectory.turns) if turn.image is not None}
    names = dict.fromkeys(name for settings in drawn.values() for name in settings)
    rows = [[name, *(_value(settings.get(name)) for settings in drawn.values())] for name in names]
    tables = _table(["Drawing", *drawn], rows) + _table(["Request", ""], shared)
    return f'<details open class="first"><summary>Settings</summary><div class="tables">{tables}</div></details>'


def _timings(trajectory: "Trajectory") -> str:
    stages = list(dict.fromkeys(stage for turn in trajectory.turns for stage in turn.seconds))
    rows = [
        [_title(index), *(_duration(turn.seconds.get(stage)) for stage in stages), f"{turn.tokens} tokens"]
        for index, turn in enumerate(trajectory.turns)
    ]
    table = _table(["Turn", *stages, "thought"], rows, compare=False)
    return f"<details open><summary>Timings</summary>{table}</details>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], compare: bool = True) -> str:
    """A table with a heading in each row; with ``compare`` rows whose values differ stand out."""
    if not rows:
        return ""
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for name, *values in rows:
        kind = ' class="differs"' if compare and len(set(values)) > 1 else ""
        cells = "".join(f"<td{kind}>{escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>'


def _gallery_card(folder: str, trajectory: "Trajectory") -> str:
    names = [name for name in trajectory.image_names() if name is not None]
    shown = list(dict.fromkeys([*names[:1], *names[-1:]]))
    labels = ["First image", "Improved image"] if len(shown) > 1 else ["Image"]
    images = "".join(
        f'<img src="{escape(_url(folder, name))}" alt="{label}" loading="lazy">'
        for name, label in zip(shown, labels, strict=True)
    )
    note = f"{trajectory.mode} · seed {trajectory.seed} · {_duration(trajectory.seconds)}"
    return (
        f'<li class="card"><a href="{escape(_url(folder, "report.html"))}"><div class="pair">{images}</div>'
        f'<p class="prompt">{escape(trajectory.prompt)}</p><p class="note">{escape(note)}</p></a></li>'
    )


def _url(folder: str, name: str) -> str:
    return f"{quote(folder)}/{name}"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
