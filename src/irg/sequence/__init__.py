"""The grammar of interleaved sequences: plain data and pure functions from which every other room reads its facts."""

from irg.sequence.layout import GEN, IGNORE, UND, Kind, Layout, SplitMode, extent, lay_out, visibility
from irg.sequence.parts import Gap, Latents, Part, Patches, Target, Text, drop_conditions
from irg.sequence.special import Grammar, SpecialTokens

__all__ = [
    "GEN",
    "IGNORE",
    "UND",
    "Gap",
    "Grammar",
    "Kind",
    "Latents",
    "Layout",
    "Part",
    "Patches",
    "SpecialTokens",
    "SplitMode",
    "Target",
    "Text",
    "drop_conditions",
    "extent",
    "lay_out",
    "visibility",
]
