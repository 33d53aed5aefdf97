"""The tables of nouns, and the sprites that we draw ourselves. Needs no download."""

from __future__ import annotations

import numpy as np
import pytest

import irg_mini.world as mw
from irg_mini.world import shapes
from irg_mini.world.classes import COLORLESS_CLASSES, can_carry, regular_plural
from irg_mini.world.drawn_sprites import draw_sprites
from irg_mini.world.spelling import correct_typo, spellings
from irg_mini.world.sprites import SPRITE_PX
from irg_mini.world.unknown import listed_words, nearest_noun

GENEVAL_EXTRA = [
    *("fire hydrant", "parking meter", "bench", "baseball glove", "surfboard", "dining table", "tv remote"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "hair drier"),
]


def test_vocabularies_grow_from_one_another() -> None:
    core, geneval, full = (list(mw.classes(name)) for name in ("core", "geneval", "full"))
    assert (len(core), len(geneval)) == (67, 80) and len(full) >= 380
    assert geneval[:67] == core and geneval[67:] == GENEVAL_EXTRA and full[:80] == geneval
    assert core[0] == "person" and core[-1] == "toothbrush"  # irg-mini v1 counts on this order
    assert mw.classes() == mw.classes("core")
    with pytest.raises(ValueError, match="choose from core, geneval, full"):
        mw.classes("everything")


def test_a_vocabulary_is_found_by_name_or_made_from_nouns() -> None:
    assert mw.find_vocabulary(None) is mw.VOCABULARIES["core"]
    assert mw.find_vocabulary("full").relations == mw.ALL_RELATIONS
    assert mw.find_vocabulary(["dog", "cat"]).nouns == ("dog", "cat")
    assert mw.find_vocabulary(["dog", "cat"]).relations == mw.RELATIONS
    with pytest.raises(ValueError, match="unknown vocabulary 'big'"):
        mw.find_vocabulary("big")


def test_every_line_of_the_tables_makes_sense() -> None:
    kinds = mw.classes("full").values()
    categories = {kind.category for kind in kinds}
    assert categories >= {"animal", "food", "vehicle", "tool", "building", "nature", "person", "symbol"}
    for kind in kinds:
        assert 0.15 <= kind.aspect <= 3, kind
        assert kind.natural is None or kind.natural in mw.COLORS, kind
        assert kind.name == kind.name.lower() and kind.plural == kind.plural.lower()
        assert all(word.isalpha() for word in kind.name.split()), kind.name
        assert (kind.emoji is None) == (kind.name in GENEVAL_EXTRA)
    emoji = [kind.emoji for kind in kinds if kind.emoji is not None]
    assert len(set(emoji)) == len(emoji)
    assert {"person", "woman"} <= COLORLESS_CLASSES and not {"robot", "dog"} & COLORLESS_CLASSES


def test_no_spelling_stands_for_two_nouns() -> None:
    meanings: dict[tuple[str, ...], set[str]] = {}
    for kind in mw.classes("full").values():
        for spelling in {kind.name, kind.plural, *kind.synonyms}:
            meanings.setdefault(tuple(spelling.replace("'", " ").split()), set()).add(kind.name)
    assert {words: names for words, names in meanings.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    ("word", "plural"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("bench", "benches"),
        ("puppy", "puppies"),
        ("glass of wine", "glasses of wine"),
    ],
)
def test_regular_plurals(word: str, plural: str) -> None:
    assert regular_plural(word) == plural


def test_unknown_words_are_unknown_and_lead_to_known_ones() -> None:
    assert len(listed_words()) > 400
    for word in listed_words():
        assert tuple(word.split()) not in spellings(), word
        assert mw.is_class(nearest_noun(word))
    train, test = mw.unknown_words("train"), mw.unknown_words("test")
    assert not {w for words in train.values() for w in words} & {w for words in test.values() for w in words}
    assert sum(map(len, test.values())) >= 15


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("hawk", "eagle"),
        ("sports car", "car"),
        ("bluebird", "bird"),
        ("blackberry", "strawberry"),
        ("walking dog", "dog"),
        ("dog walking", "dog"),
        ("wug", "question mark"),
    ],
)
def test_the_nearest_noun(word: str, nearest: str) -> None:
    assert nearest_noun(word) == nearest


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("umbrela", "umbrella"),
        ("bannana", "banana"),
        ("gaint", None),
        ("girafef", "giraffe"),
        ("elephent", "elephant"),
        ("bonkey", None),  # a changed letter in a short word is no typo: donkeys are no monkeys
        ("boar", None),  # too short
        ("dog", None),
    ],
)
def test_slips_are_mended(word: str, meant: str | None) -> None:
    assert correct_typo(word) == meant


# ---- drawn sprites ---------------------------------------------------------------------------------------------------


def test_drawn_sprites_are_tight_and_of_their_class() -> None:
    drawn = draw_sprites(SPRITE_PX)
    assert list(drawn) == GENEVAL_EXTRA
    for name, image in drawn.items():
        assert image.dtype == np.uint8 and max(image.shape[:2]) == SPRITE_PX
        solid = image[..., 3] > 8
        assert solid[0].any() and solid[-1].any() and solid[:, 0].any() and solid[:, -1].any(), name
        assert image.shape[1] / image.shape[0] == pytest.approx(mw.object_class(name).aspect, rel=0.03)
        shades = image[solid][:, :3] @ np.array([0.35, 0.45, 0.2])
        assert shades.std() > 15, name  # shaded, not flat


def test_the_drawn_set_needs_no_download() -> None:
    drawn = mw.load_sprites("drawn")
    assert drawn.names == [*mw.load_sprites("builtin").names, *GENEVAL_EXTRA]
    things = (mw.Thing("bench", "green", 3, 8, "large"), mw.Thing("toaster", None, 9, 4, "medium"))
    image = mw.render(mw.Scene("street", things), 128, drawn).astype(int)
    green = (image[..., 1] > image[..., 0] + 40) & (image[..., 1] > image[..., 2] + 40)
    red = (image[..., 0] > image[..., 1] + 80) & (image[..., 0] > image[..., 2] + 60)
    assert green[60:, :64].sum() > 300 and red[:64, 64:].sum() > 300


def test_the_kit_draws_where_it_is_told() -> None:
    shape = shapes.box(25, 50, 75, 100)
    assert shape.shape == (shapes.CANVAS, shapes.CANVAS) and shape.dtype == np.float32
    assert shape.mean() == pytest.approx(0.25, abs=0.01)
    assert shapes.oval(0, 0, 100, 100).mean() == pytest.approx(np.pi / 4, abs=0.01)
    icon = shapes.Icon().lay(shape, "#ff0000", "#0000ff").shade(shapes.box(0, 0, 100, 100), 1.0, "#00ff00")
    sprite = icon.sprite(100)
    assert sprite.shape[1:] == (100, 4) and tuple(sprite[50, 50]) == (0, 255, 0, 255)
    red, blue = shapes.Icon().lay(shape, "#ff0000", "#0000ff").sprite(100)[[5, -5], 50]
    assert red[0] > 220 and blue[2] > 220


# ---- fetched sprites -------------------------------------------------------------------------------------------------


def _fluent() -> mw.Sprites:
    try:
        return mw.load_sprites("fluent")
    except ValueError as error:
        pytest.skip(str(error))


def test_no_two_fetched_sprites_look_alike() -> None:
    """At 32 px, apart from its color: mean squared distance of coverage and of normalized brightness."""
    sprites = _fluent()
    views = []
    for name in mw.classes("full"):
        rgba = sprites.image(name).astype(np.float32) / 255
        scale = 32 / max(rgba.shape[:2])
        rows = (np.arange(32) - 16) / scale + rgba.shape[0] / 2
        cols = (np.arange(32) - 16) / scale + rgba.shape[1] / 2
        inside = ((rows >= 0) & (rows < rgba.shape[0]))[:, None] & ((cols >= 0) & (cols < rgba.shape[1]))
        small = rgba[rows.astype(int).clip(0, rgba.shape[0] - 1)][:, cols.astype(int).clip(0, rgba.shape[1] - 1)]
        alpha = small[..., 3] * inside
        brightness = small[..., :3] @ np.array([0.35, 0.45, 0.2], np.float32)
        mean = (brightness * alpha).sum() / alpha.sum()
        spread = np.sqrt((((brightness - mean) ** 2) * alpha).sum() / alpha.sum()) + 0.03
        views.append(np.stack([(brightness - mean) / spread * 0.15 * alpha, 0.5 * alpha]).ravel())
    views_NV = np.stack(views)
    squares_N = (views_NV**2).sum(1)
    apart_NN = squares_N[:, None] + squares_N - 2 * views_NV @ views_NV.T
    np.fill_diagonal(apart_NN, np.inf)
    first, second = np.unravel_index(apart_NN.argmin(), apart_NN.shape)
    names = list(mw.classes("full"))
    assert np.sqrt(apart_NN.min() / 1024) > 0.11, (names[first], names[second])


def test_what_carries_is_filled_in_the_middle_of_its_top() -> None:
    sprites = _fluent()
    for name in mw.classes("full"):
        solid = sprites.image(name)[..., 3] > 127
        height, width = solid.shape
        middle = solid[:, int(0.35 * width) : int(np.ceil(0.65 * width))]
        empty = np.where(middle.any(0), middle.argmax(0), height).mean() / height
        assert (empty <= 0.22) == can_carry(name) or abs(empty - 0.22) < 0.02, (name, empty)
