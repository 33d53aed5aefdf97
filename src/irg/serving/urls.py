"""Images behind URLs: in memory only, under names that nobody can guess, for a limited time."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StoredImage:
    """An encoded image, and until when it is there (by the store's clock)."""

    content: bytes
    media_type: str
    expires: float


class ImageStore:
    """Keeps encoded images for a while; the oldest go first when they are too many bytes."""

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes, self._ttl_s, self._clock = max_bytes, ttl_s, clock
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, content: bytes, media_type: str) -> str:
        """Keep an image; returns its name (256 random bits)."""
        name = secrets.token_urlsafe(32)
        with self._lock:
            self._images[name] = StoredImage(content, media_type, self._clock() + self._ttl_s)
            self._bytes += len(content)
            self._drop_old()
        return name

    def get(self, name: str) -> StoredImage | None:
        """The image of a name, if it is still there."""
        with self._lock:
            self._drop_old()
            return self._images.get(name)

    def _drop_old(self) -> None:
        now = self._clock()
        while self._images:
            name, oldest = next(iter(self._images.items()))
            if oldest.expires > now and self._bytes <= self._max_bytes:
                return
            del self._images[name]
            self._bytes -= len(oldest.content)
