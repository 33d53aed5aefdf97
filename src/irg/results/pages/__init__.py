"""HTML pages from the templates in this folder: every page of the package, one style sheet.

Texts come from users and models, so everything is escaped. A page needs no other file but the images it links.
"""

import base64
import io
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from irg.results.reflection import sections, without_tags

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """The page that ``template`` (such as ``report.html``) makes of ``values``."""
    return _environment().get_template(template).render(values)


def duration(seconds: float | None) -> str:
    """``820 ms``, ``3.1 s``, or a dash."""
    if seconds is None:
        return "–"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def plain(value: Any) -> str:
    """A setting's value as text."""
    if value is None or value == "":
        return "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_url(image: Image.Image | bytes) -> str:
    """An image (or the bytes of a JPEG, WebP or PNG file) as a ``data:`` URL."""
    if isinstance(image, Image.Image):
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        image = buffer.getvalue()
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "webp" if image[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("irg.results", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "data_url": data_url,
        "duration": duration,
        "plain": plain,
        "quote": quote,
        "sections": sections,
        "without_tags": without_tags,
    }
    return environment
