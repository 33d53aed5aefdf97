"""Every page is closed HTML in which nothing that a user or a model wrote can act."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from html_page import HOSTILE, Page

from irg.results.pages import render

PNG = b"\x89PNG"


@dataclass(frozen=True)
class Cell:
    text: str = f"{HOSTILE} (1-2)"
    mark: str = HOSTILE
    estimate: bool = True


TABLE = SimpleNamespace(
    title=HOSTILE,
    columns=(HOSTILE, "a/b"),
    rows=(SimpleNamespace(name=HOSTILE, cells=(Cell(), Cell(estimate=False)), reported=True),),
    notes=(HOSTILE,),
    by_mark={HOSTILE: HOSTILE},
)
IMAGE = {"label": HOSTILE, "state": HOSTILE, "verdict": HOSTILE, "why": HOSTILE}
CARD = {
    **dict.fromkeys(("category", "change", "tag", "id", "prompt"), HOSTILE),
    "gap": True,
    "sample": 1,
    "images": [{**IMAGE, "url": None}, {**IMAGE, "url": "a%20b.png"}],
    "texts": [(HOSTILE, HOSTILE)],
}
RECORD = SimpleNamespace(prompt=HOSTILE, image=PNG, thinking=HOSTILE, improved=PNG, reflection=HOSTILE)
PAGES: dict[str, dict[str, Any]] = {
    "tables.html": {"title": HOSTILE, "tables": [TABLE]},
    "bench.html": {
        "title": HOSTILE,
        "judge": HOSTILE,
        "facts": [(HOSTILE, HOSTILE)],
        "tables": [TABLE],
        "gaps": 1,
        "categories": {HOSTILE: 1},
        "changes": {HOSTILE: 1},
        "cards": [CARD, {**CARD, "gap": False}],
    },
    "rows.html": {
        "title": HOSTILE,
        "total": 12000,
        "rows": [{"record": RECORD, "reason": HOSTILE, "scores": [[HOSTILE, "1"]], "provenance": HOSTILE}],
    },
}


@pytest.mark.parametrize("name", PAGES)
def test_hostile_text_stays_text(name: str) -> None:
    page = Page(render(name, **PAGES[name]))
    assert HOSTILE in page.text
    assert all("onerror" not in attributes for _, attributes in page.elements)
    assert len(page.all("script")) == (1 if name == "bench.html" else 0)  # its own filter
    assert [image["src"] for image in page.all("img")] == {
        "tables.html": [],
        "bench.html": ["a%20b.png"] * 2,
        "rows.html": ["data:image/png;base64,iVBORw=="] * 2,
    }[name]


def test_long_column_names_can_break() -> None:
    html = render("tables.html", **PAGES["tables.html"])
    assert "a/<wbr>b" in html and "&lt;script&gt;" in html


def test_what_a_template_misses_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("tables.html", title="x")
