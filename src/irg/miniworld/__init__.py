"""The mini world: scenes of 3D icons whose truth is known, so that thoughts, reflections and scores need no teacher."""

from irg.miniworld.backgrounds import BACKGROUNDS
from irg.miniworld.captions import caption, parse_prompt
from irg.miniworld.classes import COLORS, GRID, SIZES, ObjectClass, classes, object_class
from irg.miniworld.corrupt import corrupt
from irg.miniworld.flaws import KINDS, Flaw, find_flaws
from irg.miniworld.layout import sample_scene
from irg.miniworld.oracle import (
    Edit,
    Reflection,
    find_edits,
    parse_layout,
    parse_reflection,
    reflect,
    think,
    write_layout,
)
from irg.miniworld.render import SPOILINGS, contact_sheet, degrade, render
from irg.miniworld.repair import correct
from irg.miniworld.request import ALL_TAGS, TAGS, Include, Request, held_out, make_request, sample_request
from irg.miniworld.rules import Seen, relation_strength, satisfied, see
from irg.miniworld.scene import Scene, Thing, boxes, snap
from irg.miniworld.sprites import SpriteFetchError, Sprites, fetch_sprites, load_sprites
from irg.miniworld.words import sample_texts, split_words, vocabulary

__all__ = [
    "ALL_TAGS",
    "BACKGROUNDS",
    "COLORS",
    "GRID",
    "KINDS",
    "SIZES",
    "SPOILINGS",
    "TAGS",
    "Edit",
    "Flaw",
    "Include",
    "ObjectClass",
    "Reflection",
    "Request",
    "Scene",
    "Seen",
    "SpriteFetchError",
    "Sprites",
    "Thing",
    "boxes",
    "caption",
    "classes",
    "contact_sheet",
    "correct",
    "corrupt",
    "degrade",
    "fetch_sprites",
    "find_edits",
    "find_flaws",
    "held_out",
    "load_sprites",
    "make_request",
    "object_class",
    "parse_layout",
    "parse_prompt",
    "parse_reflection",
    "reflect",
    "relation_strength",
    "render",
    "sample_request",
    "sample_scene",
    "sample_texts",
    "satisfied",
    "see",
    "snap",
    "split_words",
    "think",
    "vocabulary",
    "write_layout",
]
