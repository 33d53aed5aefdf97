"""A model behind ``irg serve``: another process, another environment, or another machine.

The key for the server is that of the environment variable IRG_API_KEY. It is sent only to this machine and to the
address in the environment variable IRG_SERVER_URL, so no workflow from elsewhere can carry it away.
"""

import asyncio
import base64
import io as bytes_io
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from comfy_api.latest import io
from PIL import Image

from . import host
from .inputs import RemoteModel

if TYPE_CHECKING:
    import aiohttp

URL, KEY = "IRG_SERVER_URL", "IRG_API_KEY"
LOCAL_URL = "http://127.0.0.1:8000"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_LONGEST_EVENT = 200_000_000  # bytes
_MOST_PARTIAL_IMAGES = 3  # that a server sends before the last one, if a number is asked for


@dataclass(frozen=True)
class Told:
    """An image that is finished, or one that is not yet, and at the end all texts."""

    image: Image.Image | None = None
    preview: Image.Image | None = None
    texts: list[str] | None = None


@dataclass(frozen=True)
class RemoteServer:
    """An IRG_SERVER: its address, and the model to ask for (empty: the server's own)."""

    url: str
    model: str = ""

    def headers(self) -> dict[str, str]:
        """With the key, where it may be sent."""
        key, known = os.environ.get(KEY, ""), server_url(os.environ.get(URL, ""))
        trusted = urlsplit(self.url).hostname in _LOCAL or (bool(os.environ.get(URL)) and self.url == known)
        return {"authorization": f"Bearer {key}"} if key and trusted else {}

    async def check(self) -> None:
        """Whether the server is there and takes requests.

        Raises:
            ValueError: it is not, or does not.
        """
        import aiohttp

        try:
            async with self._session(10) as session, session.get(f"{self.url}/v1/models") as answer:
                await self._raise_for(answer)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ValueError(f"no irg serve at {self.url}: {error or type(error).__name__}") from error

    async def stream(
        self, prompt: str, seed: int, options: Mapping[str, Any], image: Image.Image | None, count: int
    ) -> AsyncIterator[Told | None]:
        """Run the loop, which draws ``count`` images; yields what is finished, and None now and then.

        Raises:
            ValueError: the server refuses the request, or fails.
        """
        import aiohttp

        fields = {"prompt": prompt, "seed": seed, "stream": True, "stream_thinking": True, **options}
        if self.model:
            fields["model"] = self.model
        if host.shows_previews() and count <= _MOST_PARTIAL_IMAGES:  # images of rounds count, too
            fields["partial_images"] = _MOST_PARTIAL_IMAGES
        try:
            async with self._session(None) as session, self._post(session, fields, image) as answer:
                await self._raise_for(answer)
                async for event in _events(answer.content):
                    yield _told(event)
        except aiohttp.ClientError as error:
            raise ValueError(f"the connection to {self.url} broke: {error or type(error).__name__}") from error

    def _session(self, seconds: float | None) -> "aiohttp.ClientSession":
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=10)
        return aiohttp.ClientSession(headers=self.headers(), timeout=timeout)

    def _post(self, session: "aiohttp.ClientSession", fields: Mapping[str, Any], image: Image.Image | None) -> Any:
        import aiohttp

        if image is None:
            return session.post(f"{self.url}/v1/images/generations", json=fields, allow_redirects=False)
        form = aiohttp.FormData({name: _form_value(value) for name, value in fields.items()})
        form.add_field("task", "improve")
        png = bytes_io.BytesIO()
        image.save(png, "PNG")
        form.add_field("image", png.getvalue(), filename="image.png", content_type="image/png")
        return session.post(f"{self.url}/v1/images/edits", data=form, allow_redirects=False)

    async def _raise_for(self, answer: "aiohttp.ClientResponse") -> None:
        if answer.status == 200:
            return
        text = await answer.text()
        try:
            message = json.loads(text)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = text[:200] or answer.reason
        hint = f"; the key is taken from the environment variable {KEY}" if answer.status == 401 else ""
        raise ValueError(f"{self.url} answers {answer.status}: {message}{hint}")


class Server(io.ComfyNode):
    """A server in the place of a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        tooltip = f"Empty: the environment variable {URL}, else {LOCAL_URL}. A key is taken from {KEY}."
        return io.Schema(
            node_id="IRGServer",
            display_name="IRG Server",
            category="IRG",
            description="A model behind irg serve, for IRG Generate.",
            inputs=[
                io.String.Input("url", default="", tooltip=tooltip),
                io.String.Input("model", default="", optional=True, tooltip="Empty: the one that is served."),
            ],
            outputs=[RemoteModel.Output("server", display_name="model")],
            not_idempotent=True,
        )

    @classmethod
    def validate_inputs(cls, url: str | None = None) -> bool | str:
        try:
            server_url(url or "")
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    async def execute(cls, url: str, model: str = "") -> io.NodeOutput:
        server = RemoteServer(server_url(url), model.strip())
        await server.check()
        return io.NodeOutput(server)


def server_url(url: str) -> str:
    """The address without a slash at its end; of an empty one the usual address.

    Raises:
        ValueError: it is no address of a server.
    """
    url = url.strip() or os.environ.get(URL, "") or LOCAL_URL
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError(f"url must be like {LOCAL_URL}, got {url!r}")
    return url.rstrip("/").removesuffix("/v1")


def _form_value(value: Any) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


async def _events(content: "aiohttp.StreamReader") -> AsyncIterator[dict[str, Any] | None]:
    """The JSON objects of server-sent events; None twice a second while nothing comes.

    Raises:
        ValueError: the stream is none of an irg server, or ended with an error.
    """
    buffer = b""
    reading = asyncio.ensure_future(content.readany())
    try:
        while True:
            done, _ = await asyncio.wait({reading}, timeout=0.5)
            if not done:
                yield None
                host.stop_if_interrupted()
                continue
            if not (chunk := reading.result()):
                return
            reading = asyncio.ensure_future(content.readany())
            *lines, buffer = (buffer + chunk).split(b"\n")
            if len(buffer) > _LONGEST_EVENT:
                raise ValueError("the server sends an event without an end")
            for line in lines:
                if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                    yield json.loads(line[5:])
    finally:
        reading.cancel()


def _told(event: dict[str, Any] | None) -> Told | None:
    if event is None:
        return None
    if "error" in event:
        raise ValueError(f"the server failed: {event['error'].get('message', event['error'])}")
    if "b64_json" not in event:
        return None
    image = Image.open(bytes_io.BytesIO(base64.b64decode(event["b64_json"]))).convert("RGB")
    if event.get("kind") == "preview":
        return Told(preview=image)
    if not event["type"].endswith(".completed"):
        return Told(image)
    return Told(image, texts=[_texts(turn) for turn in event["irg"]["turns"]])


def _texts(turn: Mapping[str, Any]) -> str:
    return "\n\n".join(turn[name] for name in ("reflection", "thinking") if turn.get(name))
