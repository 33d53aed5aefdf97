"""Images in requests and answers."""

import base64
from typing import Any

from irg.image_files import from_base64, open_image


def image_part(png: bytes) -> dict[str, Any]:
    """An image as a part of a chat message's content."""
    form = "jpeg" if png.startswith(b"\xff\xd8") else "webp" if png[8:12] == b"WEBP" else "png"
    data = base64.b64encode(png).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{form};base64,{data}"}}


def decoded(text: str | None, size: tuple[int, int] | None) -> bytes:
    """The bytes of an image that came as base64, once it has shown to be whole and of (width, height) ``size``.

    Raises:
        ValueError: it is none; the message says why.
    """
    if not isinstance(text, str):
        raise ValueError("the answer holds no b64_json (an address is not fetched; set extra.response_format)")
    try:
        data = from_base64(text)
    except ValueError:
        raise ValueError("the answer's b64_json is not base64") from None
    try:
        found = open_image(data).size
    except ValueError as error:
        raise ValueError(f"the answer is no image that can be decoded: it {error}") from None
    if size is not None and found != size:
        raise ValueError(f"the image is {found[0]}x{found[1]} instead of {size[0]}x{size[1]}")
    return data
