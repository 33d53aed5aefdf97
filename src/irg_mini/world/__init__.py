"""The mini world: scenes of 3D icons whose truth is known, so that thoughts, reflections and scores need no teacher."""

from irg_mini.world.backgrounds import BACKGROUNDS
from irg_mini.world.captions import STYLES, caption, parse_prompt, training_caption
from irg_mini.world.checks import check
from irg_mini.world.classes import COLORS, GRID, SIZES, ObjectClass, classes, is_class, object_class
from irg_mini.world.corrupt import corrupt, near_miss
from irg_mini.world.flaws import KINDS, Flaw, find_flaws
from irg_mini.world.heldout import held_out, in_geneval
from irg_mini.world.placement import sample_pair, sample_scene
from irg_mini.world.questions import FORMS, Question, ask
from irg_mini.world.reflections import (
    Edit,
    Reflection,
    describe_flaws,
    find_edits,
    list_of_seen,
    parse_reflection,
    reflect,
)
from irg_mini.world.render import DEGRADATIONS, contact_sheet, degrade, render
from irg_mini.world.repair import correct, replan
from irg_mini.world.request import ALL_TAGS, FULL_TAGS, TAGS, Include, Request, make_request
from irg_mini.world.request_sampling import sample_request
from irg_mini.world.rules import TOUCHING, Seen, relation_strength, satisfied, see, worst_overlap
from irg_mini.world.scene import Scene, Thing, boxes, snap
from irg_mini.world.sprites import SpriteFetchError, Sprites, fetch_sprites, load_sprites
from irg_mini.world.thinking import parse_layout, think, write_layout
from irg_mini.world.unknown import nearest_noun, unknown_words
from irg_mini.world.vocabularies import ALL_RELATIONS, RELATIONS, VOCABULARIES, Vocabulary, find_vocabulary
from irg_mini.world.words import sample_texts, split_words, vocabulary

__all__ = [
    "ALL_RELATIONS",
    "ALL_TAGS",
    "BACKGROUNDS",
    "COLORS",
    "DEGRADATIONS",
    "FORMS",
    "FULL_TAGS",
    "GRID",
    "KINDS",
    "RELATIONS",
    "SIZES",
    "STYLES",
    "TAGS",
    "TOUCHING",
    "VOCABULARIES",
    "Edit",
    "Flaw",
    "Include",
    "ObjectClass",
    "Question",
    "Reflection",
    "Request",
    "Scene",
    "Seen",
    "SpriteFetchError",
    "Sprites",
    "Thing",
    "Vocabulary",
    "ask",
    "boxes",
    "caption",
    "check",
    "classes",
    "contact_sheet",
    "correct",
    "corrupt",
    "degrade",
    "describe_flaws",
    "fetch_sprites",
    "find_edits",
    "find_flaws",
    "find_vocabulary",
    "held_out",
    "in_geneval",
    "is_class",
    "list_of_seen",
    "load_sprites",
    "make_request",
    "near_miss",
    "nearest_noun",
    "object_class",
    "parse_layout",
    "parse_prompt",
    "parse_reflection",
    "reflect",
    "relation_strength",
    "render",
    "replan",
    "sample_pair",
    "sample_request",
    "sample_scene",
    "sample_texts",
    "satisfied",
    "see",
    "snap",
    "split_words",
    "think",
    "training_caption",
    "unknown_words",
    "vocabulary",
    "worst_overlap",
    "write_layout",
]
