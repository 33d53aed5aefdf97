"""Random rows as one HTML page that needs nothing else, to look at."""

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from irg.curation.build import Layout
from irg.curation.finished import Gate, records
from irg.curation.records import TrajectoryRecord
from irg.curation.store import digest, read_table, write_text

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em }
body { color: #222; background: #fafafa }
article { background: #fff; border: 1px solid #ddd; border-radius: 8px; padding: 1em 1.4em; margin: 1.4em 0 }
h2 { font-size: 1.1em; margin: 0 0 .6em } .turns { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5em }
img { max-width: 100%; min-width: 192px; image-rendering: auto; border-radius: 4px; background: #eee }
p.text { white-space: pre-wrap; overflow-wrap: anywhere } table { border-collapse: collapse; font-size: .85em }
td, th { border: 1px solid #ddd; padding: .15em .6em; text-align: left } .no { color: #a00 } .yes { color: #070 }
details { font-size: .85em; color: #555 } pre { overflow-x: auto }
"""


def sample_page(rows: Sequence[tuple[TrajectoryRecord, str | None]], title: str, total: int) -> str:
    """The page; each row with the reason why it is left out at export, if it is."""
    body = "".join(_article(record, reason) for record, reason in rows)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1><p>{len(rows)} of {total:,} finished rows, drawn at random.</p>{body}</html>\n"
    )


def _article(record: TrajectoryRecord, reason: str | None) -> str:
    verdict = f"<span class=no>left out: {escape(reason)}</span>" if reason else "<span class=yes>exported</span>"
    second = ""
    if record.improved is not None:
        text = escape(record.reflection or "")
        second = f"<div><h3>Reflection</h3>{_image(record.improved)}<p class=text>{text}</p></div>"
    scores = {name: value for name, value in record.scores.items() if value is not None}
    table = "".join(f"<tr><th>{escape(name)}<td>{value:g}" for name, value in scores.items())
    facts = {
        "id": record.id,
        "source": record.source,
        "license": record.license,
        "seed": record.seed,
        "cost": record.cost,
    }
    texts = {name: text for name, text in record.texts.items() if text is not None}
    how = json.dumps(facts | texts | json.loads(record.provenance or "{}"), indent=1, ensure_ascii=False)
    return (
        f"<article><h2>{escape(record.prompt)}</h2><p>{verdict}</p><div class=turns><div><h3>Thinking</h3>"
        f"{_image(record.image)}<p class=text>{escape(record.thinking)}</p></div>{second}</div>"
        f"<table>{table}</table><details><summary>how it was made</summary><pre>{escape(how)}</pre></details></article>"
    )


def _image(data: bytes) -> str:
    kind = "jpeg" if data.startswith(b"\xff\xd8") else "webp" if data[8:12] == b"WEBP" else "png"
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(data).decode("ascii")}">'


def sample(layout: Layout, count: int, seed: int, out: Path) -> int:
    """Write a page of random finished rows; returns how many there are on it.

    Raises:
        ValueError: no row is finished.
    """
    drawn: list[tuple[str, int, str]] = []
    total = 0
    for block in layout.blocks():
        ids = layout.accepted(block)
        total += len(ids)
        drawn = sorted([*drawn, *((digest("sample", seed, name), block, name) for name in ids)])[:count]
    if not drawn:
        raise ValueError(f"{layout.out}: no row is finished yet")
    gate = Gate.of(layout)
    found: dict[str, TrajectoryRecord] = {}
    for block in sorted({block for _, block, _ in drawn}):
        wanted = {name for _, at, name in drawn if at == block}
        found |= {record.id: record for record in records(layout, block) if record.id in wanted}
    rows = [(found[name], gate.refuses(found[name])) for _, _, name in drawn]
    write_text(out, sample_page(rows, f"{layout.recipe.export.title}: sample {seed}", total))
    return len(rows)


def sample_of_shards(folder: Path, count: int, seed: int, out: Path) -> int:
    """The same for an exported folder, or any folder of trajectory shards.

    Raises:
        ValueError: there is no row.
    """
    files = sorted(file for file in folder.rglob("*.parquet") if "conversation" not in file.relative_to(folder).parts)
    drawn: list[tuple[str, Path, int]] = []
    total = 0
    for file in files:
        rows = len(read_table(file, ["id"]))
        total += rows
        lots = ((digest("sample", seed, file.relative_to(folder).as_posix(), row), file, row) for row in range(rows))
        drawn = sorted([*drawn, *lots])[:count]
    if not drawn:
        raise ValueError(f"{folder}: no trajectory rows")
    found: dict[tuple[Path, int], TrajectoryRecord] = {}
    for file in sorted({file for _, file, _ in drawn}):  # each is read once, and only one is held
        numbers = [row for _, at, row in drawn if at == file]
        chosen = read_table(file).take(numbers).to_pylist()
        found |= {(file, number): record_of(row) for number, row in zip(numbers, chosen, strict=True)}
    shown = [(found[file, row], None) for _, file, row in drawn]
    write_text(out, sample_page(shown, f"{folder.name}: sample {seed}", total))
    return len(shown)


def record_of(row: dict[str, object]) -> TrajectoryRecord:
    """A record from its parquet row."""
    plain = dict(row)
    for name in ("image", "improved"):
        image = plain.get(name)
        plain[name] = image["bytes"] if isinstance(image, dict) else None
    known = set(TrajectoryRecord.__dataclass_fields__)
    scores = {n: v for n, v in plain.items() if n not in known and (v is None or isinstance(v, float))}
    texts = {n: v for n, v in plain.items() if n not in known and isinstance(v, str) and n != "digest"}
    return TrajectoryRecord(**{n: v for n, v in plain.items() if n in known}, scores=scores, texts=texts)  # type: ignore[arg-type]
