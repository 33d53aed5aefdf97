"""Chats and Responses inputs: which text is the request, and which images it is about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from anyio.to_thread import run_sync
from PIL.Image import Image
from pydantic import Field

from irg.serving.errors import invalid
from irg.serving.fetching import fetch
from irg.serving.image_data import decode, from_base64
from irg.serving.options import ServerOptions
from irg.serving.schemas import Strict


class TextPart(Strict):
    type: Literal["text", "input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None


class ImageURL(Strict):
    url: str
    detail: str | None = None


class ImagePart(Strict):
    """A chat's image, or an assistant's of an earlier answer."""

    type: Literal["image_url"]
    image_url: ImageURL
    index: int | None = None


class InputImagePart(Strict):
    """An image of a Responses input."""

    type: Literal["input_image"]
    image_url: str
    detail: str | None = None


Part = Annotated[TextPart | ImagePart | InputImagePart, Field(discriminator="type")]


class Message(Strict):
    """A message of a chat or of a Responses input."""

    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[Part] | None = None
    images: list[ImagePart] | None = None
    reasoning_content: str | None = None
    name: str | None = None
    refusal: None = None
    type: Literal["message"] | None = None
    id: str | None = None
    status: str | None = None
    irg: dict[str, Any] | None = None

    def parts(self) -> list[TextPart | ImagePart | InputImagePart]:
        """Its content and images as parts."""
        content = [TextPart(type="text", text=self.content)] if isinstance(self.content, str) else self.content or []
        return [*content, *(self.images or [])]


@dataclass
class Asked:
    """What a conversation asks for: its last message's text, about that message's images or the newest before it."""

    text: str
    urls: list[str] = field(default_factory=list)


def asked(messages: Sequence[Message], param: str) -> Asked:
    """The request in a conversation.

    Raises:
        ApiError: it has no text, does not end with the user, or has a system prompt, which is the server's to choose.
    """
    for number, message in enumerate(messages):
        if message.role in ("system", "developer"):
            text = "the system prompt is the protocol's own; the server's --system-prompt-file changes it"
            raise invalid(text, f"{param}.{number}", "unsupported_message")
    if not messages or messages[-1].role != "user":
        raise invalid("the last message must be the user's", param)
    own = messages[-1].parts()
    text = "\n".join(part.text for part in own if isinstance(part, TextPart)).strip()
    if not text:
        raise invalid("the last message has no text", param)
    for message in reversed(messages):
        if urls := [_url(part) for part in message.parts() if not isinstance(part, TextPart)]:
            return Asked(text, urls)
    return Asked(text)


def _url(part: ImagePart | InputImagePart) -> str:
    return part.image_url.url if isinstance(part, ImagePart) else part.image_url


async def images_of(urls: Sequence[str], options: ServerOptions, param: str) -> list[Image]:
    """The images behind URLs: their own data, or fetched from allowed hosts.

    Raises:
        ApiError: there are too many, or one can't be had.
    """
    limits = options.limits
    if len(urls) > limits.max_input_images:
        raise invalid(f"at most {limits.max_input_images} images are taken", param, "limit_exceeded")

    def read(url: str) -> Image:
        if url.lower().startswith(("http://", "https://")):
            content = fetch(url, options.image_hosts, int(limits.max_body_mb * 1e6), param)
        else:
            content = from_base64(url, param)
        return decode(content, limits.max_input_pixels, param)

    return [await run_sync(read, url) for url in urls]
