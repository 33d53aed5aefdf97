"""Sprites: one RGBA image per object class, fetched once from a public npm package, or drawn by ourselves.

The fetched set is the MIT-licensed `@lobehub/fluent-emoji-3d` (Microsoft's Fluent emoji as 256 px images). It is not
shipped: `fetch_sprites` gets it with the ordinary npm client, checks it against a pinned hash, and keeps only the
images that the class tables name in one file, together with the classes that we draw ourselves.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from irg.files import write_bytes, written
from irg_mini.world.classes import ObjectClass, classes
from irg_mini.world.drawn_sprites import DRAWING_VERSION, draw_sprites

PACKAGE = "@lobehub/fluent-emoji-3d"
VERSION = "1.1.0"
TARBALL_SHA512 = (
    "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
    "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee"
)
TARBALL_BYTES = 15_792_027
SPRITE_PX = 176
"""A sprite's longer side: that of a huge thing in an image of 256 px."""
ASPECT_TOLERANCE = 0.03


class SpriteFetchError(RuntimeError):
    """The sprite package could not be fetched or is not the pinned one."""


@dataclass(frozen=True, eq=False)
class Sprites:
    """A set of sprites: class name -> uint8 RGBA [H, W, 4], straight alpha, cropped to its alpha box."""

    source: str
    images: Mapping[str, np.ndarray]

    def image(self, name: str) -> np.ndarray:
        """The sprite of a class; ValueError if this set has none."""
        try:
            return self.images[name]
        except KeyError:
            raise ValueError(f"the {self.source} sprites have no {name!r}") from None

    @property
    def names(self) -> list[str]:
        return list(self.images)


def default_cache() -> Path:
    """$IRG_CACHE, else ~/.cache/irg."""
    return Path(os.environ.get("IRG_CACHE") or Path.home() / ".cache" / "irg")


def atlas_path(cache_dir: str | Path | None = None) -> Path:
    """Where the extracted sprites lie; a digest of all that they depend on is in the name: new ones, new file."""
    table = repr([SPRITE_PX, DRAWING_VERSION, *((c.name, c.emoji, c.cut) for c in classes("full").values())])
    digest = hashlib.sha256(table.encode()).hexdigest()[:8]
    return Path(cache_dir or default_cache()) / f"fluent-emoji-3d-{VERSION}-{digest}.npz"


def fetch_sprites(
    cache_dir: str | Path | None = None, archive: str | Path | None = None, say: Callable[[str], object] = print
) -> Path:
    """Make sure the fluent sprites lie in the cache and return their file.

    `archive` is an already downloaded package tarball to use in place of the network. The tarball that was downloaded
    stays in the cache, so that a later change of the class table needs no network.
    """
    target = atlas_path(cache_dir)
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    kept = target.parent / f"fluent-emoji-3d-{VERSION}.tgz"
    if archive is None and not kept.exists():
        say(f"fetching sprites: {PACKAGE}@{VERSION} (MIT) from the npm registry, {TARBALL_BYTES / 1e6:.1f} MB")
        _npm_pack(kept)
    source = Path(archive) if archive is not None else kept
    images = _extract(_checked_bytes(source))
    _save_atlas(images, target)
    say(f"{len(images)} sprites in {target} ({target.stat().st_size / 1e6:.1f} MB)")
    return target


@cache
def _load_atlas(path: Path) -> Sprites:
    with np.load(path) as atlas:
        return Sprites("fluent", {name: atlas[name] for name in atlas.files})


def load_sprites(source: str = "fluent", cache_dir: str | Path | None = None) -> Sprites:
    """'fluent': the fetched set, all classes (ValueError says how to fetch it). Without a download: 'builtin', a few
    plainly drawn core classes; 'drawn', those and the 13 of GenEval's that the emoji set lacks.
    """
    if source in ("builtin", "drawn"):
        return _builtin(with_drawn=source == "drawn")
    if source != "fluent":
        raise ValueError(f"unknown sprites {source!r}; choose 'fluent', 'builtin' or 'drawn'")
    path = atlas_path(cache_dir)
    if not path.exists():
        raise ValueError(f"no fluent sprites at {path}; get them with `irg data sprites` (needs npm)")
    return _load_atlas(path)


@cache
def _builtin(with_drawn: bool) -> Sprites:
    from irg_mini.world.builtin_sprites import draw_builtin_sprites

    if not with_drawn:
        return Sprites("builtin", draw_builtin_sprites())
    return Sprites("drawn", draw_builtin_sprites() | draw_sprites(SPRITE_PX))


def _npm_pack(target: Path) -> None:
    """Download the package tarball to `target` with `npm pack`."""
    npm = shutil.which("npm")
    if npm is None:
        raise SpriteFetchError(
            f"npm is not installed, and the sprites come as the npm package {PACKAGE}@{VERSION}; "
            "install Node.js, or pass the package's .tgz as archive="
        )
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
        except subprocess.TimeoutExpired:
            raise SpriteFetchError(f"`npm pack {PACKAGE}@{VERSION}` took longer than 10 minutes") from None
        tarballs = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(tarballs) != 1:
            tail = " | ".join(done.stderr.strip().splitlines()[-3:])
            raise SpriteFetchError(f"`npm pack {PACKAGE}@{VERSION}` failed: {tail or 'no tarball came'}")
        write_bytes(target, _checked_bytes(tarballs[0]))


def _checked_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpriteFetchError(f"cannot read the sprite package {path}: {error.strerror}") from None
    if hashlib.sha512(data).hexdigest() != TARBALL_SHA512:
        raise SpriteFetchError(f"{path} is not {PACKAGE}@{VERSION}: its sha512 differs ({len(data)} bytes)")
    return data


def _extract(tarball: bytes) -> dict[str, np.ndarray]:
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as tar:
        wanted = {f"package/assets/{c.emoji}.webp": c for c in classes("full").values() if c.emoji is not None}
        found = {}
        for member in tar:
            if (kind := wanted.get(member.name)) is not None and (handle := tar.extractfile(member)) is not None:
                found[kind.name] = _prepare(Image.open(handle), kind)
    found |= draw_sprites(SPRITE_PX)
    missing = [name for name in classes("full") if name not in found]
    if missing:
        raise SpriteFetchError(f"the package has no image for: {', '.join(missing)}")
    return {name: found[name] for name in classes("full")}


def _prepare(image: Image.Image, kind: ObjectClass) -> np.ndarray:
    """Cut the thing out of its emoji, crop it to its alpha box, shrink it to at most SPRITE_PX."""
    image = image.convert("RGBA")
    if kind.cut is not None:
        image.putalpha(_cut_alpha(image, kind))
    solid = image.getchannel("A").point(lambda a: 255 if a >= 16 else 0)
    box = solid.getbbox()
    if box is None:
        raise SpriteFetchError(f"the image of {kind.name!r} ({kind.emoji}) is empty")
    image = image.crop(box)
    aspect = image.width / image.height
    if abs(aspect / kind.aspect - 1) > ASPECT_TOLERANCE:
        raise SpriteFetchError(f"class table: {kind.name!r} has aspect {kind.aspect}, its image {aspect:.2f}")
    scale = min(1.0, SPRITE_PX / max(image.size))
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return np.asarray(image.convert("RGBa").resize(size, Image.Resampling.LANCZOS).convert("RGBA"))


def _cut_alpha(image: Image.Image, kind: ObjectClass) -> Image.Image:
    """The image's alpha inside the class's cut polygon, with an antialiased edge."""
    assert kind.cut is not None
    factor = 4
    mask = Image.new("L", (image.width * factor, image.height * factor), 0)
    points = [(x / 10 * mask.width, y / 10 * mask.height) for x, y in kind.cut]
    ImageDraw.Draw(mask).polygon(points, fill=255)
    mask = mask.resize(image.size, Image.Resampling.BOX)
    alpha = np.asarray(image.getchannel("A"), np.uint16) * np.asarray(mask, np.uint16) // 255
    return Image.fromarray(alpha.astype(np.uint8))


def _save_atlas(images: Mapping[str, np.ndarray], target: Path) -> None:
    with written(target) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **images)  # type: ignore[arg-type]
