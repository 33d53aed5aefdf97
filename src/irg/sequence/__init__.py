"""The grammar of interleaved sequences: plain data and pure functions; token ids, positions, experts, masks and loss
follow from it."""

from irg.sequence.layout import GEN, IGNORE, UND, SplitMode, TokenKind, TokenLayout, extent, lay_out, visibility
from irg.sequence.parts import DroppedImage, Latents, Part, Patches, Target, Text, drop_conditions
from irg.sequence.special import Grammar, SpecialTokens

__all__ = [
    "GEN",
    "IGNORE",
    "UND",
    "DroppedImage",
    "Grammar",
    "Latents",
    "Part",
    "Patches",
    "SpecialTokens",
    "SplitMode",
    "Target",
    "Text",
    "TokenKind",
    "TokenLayout",
    "drop_conditions",
    "extent",
    "lay_out",
    "visibility",
]
