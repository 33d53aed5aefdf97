"""From parts to token ids, rope positions, experts, visibility and loss: all of these are computed here alone.

Legend: T tokens of one sequence, in reading order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from irg.sequence.parts import DroppedImage, Latents, Part, Patches, Target, Text
from irg.sequence.special import Grammar

UND, GEN = 0, 1  # the two experts: understanding, generation
IGNORE = -100  # label of a token that carries no text loss


class TokenKind(IntEnum):
    """What a token is. Start and end tokens of an image are ``TEXT``: they come from the token embedding."""

    TEXT = 0
    PATCH = 1
    LATENT = 2  # clean
    NOISY = 3


class SplitMode(IntEnum):
    """How the tokens of one block see each other, and whether other blocks may see them."""

    CAUSAL = 0
    FULL = 1
    NOISE = 2  # full inside, invisible to every other block
    SIBLING = 3  # causal inside, invisible to every other block


@dataclass(frozen=True)
class TokenLayout:
    """What follows from the parts of one sequence. All arrays have one entry per token.

    ``ids`` is the token id (0 where the token is a patch or latent), ``cells`` the row in the 2-D position table
    (0 elsewhere), ``labels`` the token to predict or :data:`IGNORE`, ``splits`` the index of the token's block.
    """

    ids_T: np.ndarray
    positions_T: np.ndarray
    kinds_T: np.ndarray
    cells_T: np.ndarray
    labels_T: np.ndarray
    splits_T: np.ndarray
    split_lens: tuple[int, ...]
    split_modes: tuple[SplitMode, ...]
    next_position: int

    def __len__(self) -> int:
        return len(self.ids_T)

    @property
    def experts_T(self) -> np.ndarray:
        """:data:`GEN` for latent tokens, clean or noised; :data:`UND` for everything else."""
        return (self.kinds_T >= TokenKind.LATENT).astype(np.int64)


def cells_of(grid: tuple[int, int], side: int) -> np.ndarray:
    """Rows of a ``side`` x ``side`` position table for an image of ``grid`` tokens, row by row: row * side + column.

    Raises:
        ValueError: the image has more tokens on a side than the table.
    """
    rows, columns = grid
    if rows > side or columns > side:
        raise ValueError(f"an image of {rows} x {columns} tokens does not fit the position table of {side} x {side}")
    return (np.arange(rows)[:, None] * side + np.arange(columns)[None, :]).reshape(-1)


def lay_out(parts: Sequence[Part], grammar: Grammar, position: int = 0) -> TokenLayout:
    """Lay a sequence of parts out, starting at rope position ``position``.

    Rules (``golden/README.md``, "Rules"): a text is bos + ids + eos and advances the position by one per token; the
    tokens of an image block, start and end token included, share one position; a block that is read advances the
    position by one, a target does not. A sibling text does not either, so that texts which continue the same prefix
    begin at the same position.
    """
    special = grammar.special
    blocks: list[tuple[np.ndarray, ...]] = []
    lens: list[int] = []
    modes: list[SplitMode] = []

    for part in parts:
        if isinstance(part, DroppedImage):
            position += 1
            continue
        if isinstance(part, Text):
            ids = np.array([special.bos, *part.ids, special.eos], dtype=np.int64)
            n = len(ids)
            labels = np.full(n, IGNORE)
            if part.loss:
                labels[:-1] = ids[1:]
            blocks.append((ids, position + np.arange(n), np.zeros(n, np.int64), np.zeros(n, np.int64), labels))
            position += 0 if part.sibling else n
            modes.append(SplitMode.SIBLING if part.sibling else SplitMode.CAUSAL)
        else:
            n = part.tokens + 2
            side = grammar.patch_side if isinstance(part, Patches) else grammar.latent_side
            kind = {Patches: TokenKind.PATCH, Latents: TokenKind.LATENT, Target: TokenKind.NOISY}[type(part)]
            ids, kinds, cells = (np.zeros(n, np.int64) for _ in range(3))
            ids[0], ids[-1] = special.start_of_image, special.end_of_image
            kinds[1:-1] = kind
            cells[1:-1] = cells_of(part.grid, side)
            blocks.append((ids, np.full(n, position), kinds, cells, np.full(n, IGNORE)))
            if isinstance(part, Target):
                modes.append(SplitMode.NOISE)
            else:
                modes.append(SplitMode.FULL)
                position += 1
        lens.append(n)

    ids_T, positions_T, kinds_T, cells_T, labels_T = (
        np.concatenate(column).astype(np.int64) if column else np.zeros(0, np.int64)
        for column in (zip(*blocks, strict=True) if blocks else [()] * 5)
    )
    splits_T = np.repeat(np.arange(len(lens)), lens)
    return TokenLayout(
        ids_T, positions_T, kinds_T, cells_T, labels_T, splits_T, tuple(lens), tuple(modes), next_position=position
    )


def extent(part: Part) -> tuple[int, int]:
    """How far a part advances a sequence: (tokens, rope positions)."""
    match part:
        case DroppedImage():
            return 0, 1
        case Text():
            return len(part.ids) + 2, 0 if part.sibling else len(part.ids) + 2
        case Target():
            return part.tokens + 2, 0
        case _:
            return part.tokens + 2, 1


def visibility(layout: TokenLayout) -> np.ndarray:
    """Which token may attend to which: bool [T, T], ``[query, key]``, True = may attend.

    A block sees itself (causally if it is text) and every earlier block of its sequence that is neither noise nor a
    sibling.
    """
    return visibility_of(layout.split_lens, layout.split_modes)


def visibility_of(split_lens: Sequence[int], split_modes: Sequence[SplitMode]) -> np.ndarray:
    """:func:`visibility` from block lengths and modes alone."""
    splits_T = np.repeat(np.arange(len(split_lens)), split_lens)
    modes_T = np.repeat(np.asarray(split_modes, np.int64), split_lens)
    order_T = np.arange(len(splits_T))
    return may_attend(
        (splits_T[:, None], modes_T[:, None], order_T[:, None]), (splits_T[None, :], modes_T[None, :], order_T[None, :])
    )


def may_attend(query: tuple[Any, Any, Any], key: tuple[Any, Any, Any]) -> Any:
    """The rule itself, for tokens of one sequence given as (block, mode of the block, place in reading order).

    Elementwise on whatever broadcasts and compares: numpy arrays, tensors, or a kernel's scalars.
    """
    (q_split, q_mode, q_order), (k_split, k_mode, k_order) = query, key
    causal = (q_mode == int(SplitMode.CAUSAL)) | (q_mode == int(SplitMode.SIBLING))
    hidden = (k_mode == int(SplitMode.NOISE)) | (k_mode == int(SplitMode.SIBLING))
    inside = (q_split == k_split) & (~causal | (q_order >= k_order))
    return inside | ((q_split > k_split) & ~hidden)
