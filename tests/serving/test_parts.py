"""Parts of the server that need no server: keys, URLs, previews, options, image data."""

import hashlib
import io
from pathlib import Path

import pytest
import torch
from PIL import Image

from irg.engine.events import DenoiseStep
from irg.reasoning.pipeline import IRGPipeline
from irg.reasoning.settings import with_options
from irg.serving.auth import ApiKeys, new_key
from irg.serving.costs import updates
from irg.serving.errors import ApiError
from irg.serving.image_data import data_url, decode, encode, from_base64
from irg.serving.options import Limits, ServerOptions
from irg.serving.previews import Previewer, preview_steps
from irg.serving.urls import ImageStore

KEY = "irg-0123456789abcdef"


def test_an_image_from_a_new_thinking_has_the_updates_of_a_first_one(tiny_pipe: IRGPipeline) -> None:
    for revise, wanted in (("reflection", [3, 2, 2]), ("thinking", [3, 3, 3])):
        settings = with_options(tiny_pipe.defaults, {"rounds": 2, "revise": revise})
        assert updates(tiny_pipe.jobs.make("x", settings, 1)) == wanted


def test_a_new_key_is_let_in_by_its_line_and_no_other(tmp_path: Path) -> None:
    key, line = new_key("alice")
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\n{line}\nbob:sha256:{'0' * 64}\n")
    keys = ApiKeys()
    keys.add_file(str(file))
    assert keys.name_of(f"Bearer {key}") == "alice"
    assert [keys.name_of(one) for one in (None, "", key, f"Basic {key}", f"Bearer {key}x", "Bearer ")] == [None] * 6
    assert key not in line and key not in repr(vars(keys))


def test_plain_keys_are_kept_as_digests_only() -> None:
    keys = ApiKeys()
    keys.add_plain([KEY])
    assert keys.name_of(f"bearer {KEY}") == "key-1"
    assert vars(keys) == {"_digests": {"key-1": hashlib.sha256(KEY.encode()).hexdigest()}}
    with pytest.raises(ValueError, match="API key 1 has 5 characters"):
        keys.add_plain(["short"])


@pytest.mark.parametrize("line", [KEY, "alice:sha256:abc", "al ice:sha256:" + "0" * 64])
def test_a_bad_line_is_named_without_being_shown(line: str, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"\n{line}\n")
    with pytest.raises(ValueError, match="line 2: must be NAME:sha256:DIGEST") as caught:
        ApiKeys().add_file(str(file))
    assert line not in str(caught.value)


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(ValueError, match="holds no API key"):
        ApiKeys().add_file(str(tmp_path / "keys"))
    with pytest.raises(ValueError, match="can't read the API keys"):
        ApiKeys().add_file(str(tmp_path / "absent"))


def test_stored_images_expire_and_the_oldest_go_first() -> None:
    now = [0.0]
    store = ImageStore(max_bytes=10, ttl_s=5, clock=lambda: now[0])
    first, second = store.add(b"12345", "image/png"), store.add(b"67890", "image/png")
    assert first != second and len(first) >= 40
    third = store.add(b"x", "image/png")
    assert store.get(first) is None and store.get(second) is not None and store.get(third) is not None
    now[0] = 5.0
    assert store.get(second) is None and store.get(third) is None and store.get("") is None


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_which_hosts_are_local(host: str, local: bool) -> None:
    assert ServerOptions(host=host).local is local


def test_limits_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_rounds must be above 0, got 0"):
        Limits(max_rounds=0)


def test_previews_are_spread_over_the_turns() -> None:
    assert preview_steps([14, 14], 3) == {(0, 5), (0, 9), (1, 7)}
    assert preview_steps([14], 0) == frozenset()
    assert preview_steps([2, 1], 2) == frozenset()  # nothing lies between the first step and the last
    assert preview_steps([], 2) == frozenset()


def test_a_preview_is_exact_where_the_path_is_straight() -> None:
    noise, clean, previewer = torch.tensor([[4.0, -2.0]]), torch.tensor([[1.0, 3.0]]), Previewer()

    def step(number: int, time: float, turn: int = 0) -> DenoiseStep:
        return DenoiseStep(0, turn, number, 4, time, clean + time * (noise - clean))

    assert previewer.guess(step(1, 0.75)) is None
    guessed = previewer.guess(step(2, 0.5))
    assert guessed is not None and torch.allclose(guessed, clean)
    assert previewer.guess(step(1, 0.75, turn=1)) is None  # another image's state is no neighbor


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_images_go_there_and_back(format: str) -> None:
    image = Image.new("RGB", (40, 30), (200, 30, 60))
    content = encode(image, format)  # type: ignore[arg-type]
    assert Image.open(io.BytesIO(content)).format == format.upper()
    back = decode(from_base64(data_url(content, format), "image"), 2000, "image")  # type: ignore[arg-type]
    assert back.size == (40, 30)
    assert all(abs(a - b) < 8 for a, b in zip(back.getpixel((20, 15)), (200, 30, 60), strict=True))  # type: ignore[arg-type]


def animated() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (encode(Image.new("RGB", (60, 60))), "has 60x60 pixels"),
        (animated(), "animated"),
        (encode(Image.effect_noise((40, 40), 90))[:-400], "damaged or cut off"),
        (b"%PDF-1.7", "is a PDF file"),
        (b"", "is empty"),
    ],
)
def test_images_that_are_refused(content: bytes, said: str) -> None:
    with pytest.raises(ApiError, match=said) as caught:
        decode(content, 2000, "image")
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "image", "invalid_image")


@pytest.mark.parametrize("text", ["data:image/png,AAAA", "http://x/y.png", "A\x00"])
def test_text_that_is_no_image(text: str) -> None:
    with pytest.raises(ApiError, match=r"base64|data URL"):
        from_base64(text, "image")
