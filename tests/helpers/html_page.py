"""Reads an HTML page in tests: its elements, its visible text, and whether every element is closed."""

from html.parser import HTMLParser
from typing import Any

HOSTILE = '<script>alert(1)</script> "quoted" <img src=x onerror=alert(2)> & \' `'


class Page(HTMLParser):
    """Collects elements and visible text, and complains about elements left open."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, Any]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "link", "br", "wbr", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, f"misplaced </{tag}>"

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, Any]]:
        return [attributes for name, attributes in self.elements if name == tag]
