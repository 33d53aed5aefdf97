"""The layout against rules written out slowly, over random sequences of parts."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irg.sequence import (
    GEN,
    IGNORE,
    UND,
    DroppedImage,
    Grammar,
    Latents,
    Part,
    Patches,
    SpecialTokens,
    SplitMode,
    Target,
    Text,
    TokenKind,
    drop_conditions,
    extent,
    lay_out,
    visibility,
)
from irg.sequence.parts import noised_copies

BOS, EOS, START, END = 90, 91, 92, 93
GRAMMAR = Grammar(SpecialTokens(BOS, EOS, START, END), latent_side=5, patch_side=4)

grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
texts = st.builds(Text, st.lists(st.integers(0, 89), max_size=5).map(tuple), st.booleans())
parts = st.one_of(
    texts, st.builds(Latents, grids), st.builds(Patches, grids), st.builds(Target, grids), st.just(DroppedImage())
)
sequences = st.lists(parts, max_size=7)


def slowly(sequence: Sequence[Part], position: int) -> tuple[list[dict[str, int]], int]:
    """Every token as golden/README.md words it, one after the other."""
    tokens: list[dict[str, int]] = []
    for block, part in enumerate(sequence):
        if isinstance(part, DroppedImage):
            position += 1
        elif isinstance(part, Text):
            ids = [BOS, *part.ids, EOS]
            for i, token in enumerate(ids):
                label = ids[i + 1] if part.loss and i + 1 < len(ids) else IGNORE
                tokens.append(
                    {"id": token, "pos": position, "kind": TokenKind.TEXT, "cell": 0, "label": label, "block": block}
                )
                position += 1
        else:
            side = 4 if isinstance(part, Patches) else 5
            kind = {Patches: TokenKind.PATCH, Latents: TokenKind.LATENT, Target: TokenKind.NOISY}[type(part)]
            edge = {"pos": position, "kind": TokenKind.TEXT, "cell": 0, "label": IGNORE, "block": block}
            tokens.append({"id": START, **edge})
            for row in range(part.grid[0]):
                for column in range(part.grid[1]):
                    tokens.append({**edge, "id": 0, "kind": kind, "cell": row * side + column})
            tokens.append({"id": END, **edge})
            position += not isinstance(part, Target)
    return tokens, position


def sees(sequence: Sequence[Part], tokens: Sequence[dict[str, int]], query: int, key: int) -> bool:
    """May token ``query`` attend to token ``key``?"""
    own, other = tokens[query]["block"], tokens[key]["block"]
    if own == other:
        return key <= query if isinstance(sequence[own], Text) else True
    return other < own and not isinstance(sequence[other], Target)


@given(sequences, st.integers(0, 100))
def test_every_fact_of_every_token(sequence: list[Part], position: int) -> None:
    layout = lay_out(sequence, GRAMMAR, position)
    tokens, end = slowly(sequence, position)
    for name, array in (
        ("id", layout.ids_T),
        ("pos", layout.positions_T),
        ("kind", layout.kinds_T),
        ("cell", layout.cells_T),
        ("label", layout.labels_T),
    ):
        assert array.dtype == np.int64
        assert array.tolist() == [token[name] for token in tokens], name
    generated = [token["kind"] in (TokenKind.LATENT, TokenKind.NOISY) for token in tokens]
    assert layout.experts_T.tolist() == [GEN if g else UND for g in generated]
    assert layout.next_position == end
    assert len(layout) == len(tokens) == sum(layout.split_lens)


@given(sequences)
def test_who_sees_whom(sequence: list[Part]) -> None:
    tokens, _ = slowly(sequence, 0)
    n = len(tokens)
    wanted = np.array([[sees(sequence, tokens, q, k) for k in range(n)] for q in range(n)], bool).reshape(n, n)
    assert np.array_equal(visibility(lay_out(sequence, GRAMMAR)), wanted)


@given(sequences, st.integers(0, 100))
def test_extent_agrees(sequence: list[Part], position: int) -> None:
    """Parts may be laid out one after the other: extents add up to the whole, block by block."""
    layout = lay_out(sequence, GRAMMAR, position)
    tokens, positions = (list(accumulate(column)) for column in zip((0, 0), *map(extent, sequence), strict=True))
    assert (len(layout), layout.next_position) == (tokens[-1], position + positions[-1])
    for part, start, n, at in zip(sequence, tokens, tokens[1:], positions, strict=False):
        alone = lay_out([part], GRAMMAR, position + at)
        assert np.array_equal(alone.positions_T, layout.positions_T[start:n])
        assert np.array_equal(alone.labels_T, layout.labels_T[start:n])


@given(sequences)
def test_every_token_sees_itself_and_nothing_later_outside_its_block(sequence: list[Part]) -> None:
    layout = lay_out(sequence, GRAMMAR)
    seen = visibility(layout)
    assert seen.diagonal().all()
    assert not seen[layout.splits_T[:, None] < layout.splits_T[None, :]].any()


def test_a_whole_round_in_numbers() -> None:
    """Text, image read both ways, text with loss, image drawn."""
    layout = lay_out(
        [Text((7, 8)), Latents((2, 1)), Patches((1, 2)), Text((9,), loss=True), Target((1, 2))], GRAMMAR, position=3
    )
    assert layout.ids_T.tolist() == [90, 7, 8, 91, 92, 0, 0, 93, 92, 0, 0, 93, 90, 9, 91, 92, 0, 0, 93]
    assert layout.positions_T.tolist() == [3, 4, 5, 6, *[7] * 4, *[8] * 4, 9, 10, 11, *[12] * 4]
    assert layout.cells_T.tolist() == [0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    assert layout.labels_T.tolist() == [IGNORE] * 12 + [9, 91] + [IGNORE] * 5
    assert layout.split_lens == (4, 4, 4, 3, 4)
    assert layout.split_modes == (
        SplitMode.CAUSAL,
        SplitMode.FULL,
        SplitMode.FULL,
        SplitMode.CAUSAL,
        SplitMode.NOISE,
    )
    assert layout.next_position == 12


def test_an_empty_sequence() -> None:
    layout = lay_out([], GRAMMAR, position=4)
    assert (len(layout), layout.next_position, visibility(layout).shape) == (0, 4, (0, 0))


@pytest.mark.parametrize(("part", "side"), [(Latents((6, 1)), 5), (Patches((1, 5)), 4), (Target((1, 6)), 5)])
def test_an_image_larger_than_the_table_is_refused(part: Part, side: int) -> None:
    with pytest.raises(ValueError, match=f"{side} x {side}"):
        lay_out([part], GRAMMAR)


@pytest.mark.parametrize("form", [Latents, Patches, Target])
def test_an_image_has_tokens(form: type[Latents | Patches | Target]) -> None:
    with pytest.raises(ValueError, match=rf"{form.__name__}.*\(0, 3\)"):
        form((0, 3))


# ------------------------------------------------------------------------------------------------------------- dropout


@given(sequences, st.data())
def test_dropout_leaves_the_right_gaps(sequence: list[Part], data: st.DataObject) -> None:
    """One number per droppable part, in order; a target is always kept."""
    droppable = [p for p in sequence if isinstance(p, Text | Latents | Patches)]
    numbers = data.draw(st.lists(st.floats(0, 1, exclude_max=True), min_size=len(droppable), max_size=len(droppable)))
    drawn = iter(numbers)
    kept = drop_conditions(sequence, lambda: next(drawn), text=0.5, latents=0.25, patches=0.75)
    assert not list(drawn)

    limits = {Text: 0.5, Latents: 0.25, Patches: 0.75}
    wanted: list[Part] = []
    remaining = iter(numbers)
    for part in sequence:
        if type(part) not in limits or next(remaining) >= limits[type(part)]:
            wanted.append(part)
        elif not isinstance(part, Text):
            wanted.append(DroppedImage())
    assert kept == wanted


@given(sequences)
def test_a_dropped_image_moves_nobody(sequence: list[Part]) -> None:
    """Every token that is left keeps its position when images are dropped."""
    gone = drop_conditions(sequence, lambda: 0.0, text=0.0, latents=1.0, patches=1.0)
    full, left = lay_out(sequence, GRAMMAR), lay_out(gone, GRAMMAR)
    read = [isinstance(part, Latents | Patches) for part in sequence if not isinstance(part, DroppedImage)]
    kept = ~np.repeat(np.array(read, bool), full.split_lens)
    assert left.positions_T.tolist() == full.positions_T[kept].tolist()
    assert left.next_position == full.next_position


# -------------------------------------------------------------------------------------------------------- noised copies


@given(sequences, st.integers(1, 3))
def test_noised_copies(sequence: list[Part], copies: int) -> None:
    """Copies stand side by side at one position, see the same context, and are invisible to all others."""
    copied = noised_copies(sequence, copies)
    targets = sum(isinstance(part, Target) for part in sequence)
    assert len(copied) == len(sequence) + (copies - 1) * targets
    layout = lay_out(copied, GRAMMAR)
    assert layout.next_position == lay_out(sequence, GRAMMAR).next_position
    seen = visibility(layout)
    noisy = [i for i, mode in enumerate(layout.split_modes) if mode == SplitMode.NOISE]
    for block in noisy:
        mine = layout.splits_T == block
        assert not seen[~mine][:, mine].any()
        assert seen[mine][:, mine].all()
    for group in range(0, len(noisy), copies):
        views = [seen[layout.splits_T == block][0] for block in noisy[group : group + copies]]
        others = ~np.isin(layout.splits_T, noisy[group : group + copies])
        assert all(np.array_equal(view[others], views[0][others]) for view in views)
        assert len({int(layout.positions_T[layout.splits_T == b][0]) for b in noisy[group : group + copies]}) == 1


def test_siblings_continue_the_same_prefix() -> None:
    """Each is laid out, and sees, as if it stood alone behind the prefix; nothing sees it."""
    prefix: list[Part] = [Text((7, 8)), Latents((1, 2))]
    siblings = [Text((5,) * n, loss=True, sibling=True) for n in (3, 0, 2)]
    layout = lay_out([*prefix, *siblings, Text((9,))], GRAMMAR)
    seen, held = visibility(layout), len(lay_out(prefix, GRAMMAR))
    for block, sibling in enumerate(siblings, 2):
        alone = lay_out([*prefix, Text(sibling.ids, loss=True)], GRAMMAR)
        mine = layout.splits_T == block
        assert layout.positions_T[mine].tolist() == alone.positions_T[held:].tolist()
        assert layout.labels_T[mine].tolist() == alone.labels_T[held:].tolist()
        with_prefix = mine | (layout.splits_T < 2)
        assert np.array_equal(seen[mine][:, with_prefix], visibility(alone)[held:])
        assert not seen[mine][:, ~with_prefix].any() and not seen[~mine][:, mine].any()
    assert layout.next_position == lay_out([*prefix, Text((9,))], GRAMMAR).next_position


def test_copies_are_numbered() -> None:
    assert [part.noise for part in noised_copies([Target((1, 1))], 3)] == [0, 1, 2]  # type: ignore[union-attr]
