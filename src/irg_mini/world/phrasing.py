"""The phrases that prompts are made of, as data. 'varied' is what irg-mini v1 learned from; 'rich' goes further."""

from __future__ import annotations

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPENINGS = (
    "a photo of",
    "a picture of",
    "an image of",
    "a photo showing",
    "a scene with",
    "draw",
    "show",
    "paint",
    "please draw",
    "there is",
    "",
)
RICH_OPENINGS = (
    *OPENINGS,
    *("photo of", "picture of", "image of", "a drawing of", "an illustration of", "a rendering of", "a painting of"),
    *("a nice picture of", "a colorful picture of", "a simple picture of", "a cute picture of", "a 3d rendering of"),
    *("a picture with", "an image with", "a photo with", "a picture showing", "an image showing", "a scene showing"),
    *("a picture in which there is", "an image in which you can see", "a scene in which we see"),
    *("draw me", "show me", "paint me", "give me", "make", "create", "generate", "render", "sketch", "imagine"),
    *("draw a picture of", "paint a picture of", "make an image of", "create an image of", "generate a picture of"),
    *("generate an image with", "make me a picture of", "give me a photo of", "show me a picture of"),
    *("please paint", "please show me", "please make a picture of", "please generate an image of"),
    *("can you draw", "could you draw", "can you paint", "could you make a picture of", "would you draw"),
    *("i want", "i want to see", "i want a picture of", "i would like", "i would like to see", "i need a picture of"),
    *("i would like a picture that shows", "i am looking for a picture of", "we need an image of", "let me see"),
    *("this picture shows", "the picture shows", "in this picture there is", "here is", "you can see", "we see"),
)
PLURAL_OPENINGS = {
    "there is": "there are",
    "here is": "here are",
    "in this picture there is": "in this picture there are",
    "a picture in which there is": "a picture in which there are",
}
"""What these openings become before more than one thing."""
QUESTION_OPENINGS = frozenset(text for text in RICH_OPENINGS if text.startswith(("can ", "could ", "would ")))
ENDINGS = ("", "", "", "", ".", ".", "!", ", please", ", please.", ", thank you", ", nothing else", " and nothing else")

RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "on": ("on", "on top of"),
    "behind": ("behind", "half hidden behind"),
}
RICH_RELATION_PHRASES: dict[str, tuple[str, ...]] = {
    "left of": (*RELATION_PHRASES["left of"], "on the left side of", "at the left of", "to the left side of"),
    "right of": (*RELATION_PHRASES["right of"], "on the right side of", "at the right of", "to the right side of"),
    "above": (*RELATION_PHRASES["above"], "up above", "higher than", "floating above"),
    "below": (*RELATION_PHRASES["below"], "underneath", "lower than", "down below"),
    "on": (*RELATION_PHRASES["on"], "standing on", "standing on top of", "sitting on", "resting on", "placed on"),
    "behind": (*RELATION_PHRASES["behind"], "partly hidden behind", "standing behind", "hiding behind", "in back of"),
}
BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "meadow": ("on the grass", "on the meadow", "in a meadow", "in a green meadow", "on a grassy field", "in a field"),
    "desert": ("in the desert", "among sand dunes", "on the sand"),
    "sea": ("at the sea", "by the ocean", "at the beach", "on the beach"),
    "snow": ("in a snowy landscape", "in winter", "on the snow"),
    "night": ("in the night", "under a night sky", "under the stars"),
    "room": ("inside a room", "in the room", "indoors", "in a living room", "in the living room"),
    "street": ("in a street", "in the street", "on the street", "in the city", "on a city street", "on a road"),
    "studio": ("in a photo studio", "in the studio", "on a plain background", "on a gray background"),
    "sunset": ("in the evening", "at dusk", "in the sunset", "under a red evening sky"),
    "forest": ("in the woods", "in the forest", "between trees"),
    "kitchen": ("in the kitchen", "inside a kitchen"),
    "stage": ("on the stage", "in a theater"),
}
"""Beside each background's own phrase."""

COUNT_PHRASES: dict[int, tuple[str, ...]] = {
    1: ("one", "a single"),
    2: ("a couple of", "a pair of"),
    3: ("a trio of", "a group of three"),
    4: ("a group of four",),
    5: ("a group of five",),
}
EXACTLY = ("exactly", "just", "only")
SHADES = ("bright", "deep", "shiny")
FILLERS = ("nice", "cute", "lovely", "pretty", "beautiful", "fine", "funny", "little", "big", "old", "new", "happy")
"""Words before a color, and before a noun, that mean nothing here."""
JOINTS = (" and ", " and ", " and ", " and also ", " together with ", " plus ", " with ", " & ")
"""Between the last two things."""

PAIRED = frozenset({"skis", "scissors", "jeans", "shorts", "sunglasses", "headphones", "gloves", "socks"})
"""'a pair of' is one of these."""
BARE = PAIRED - {"skis", "scissors"} | {"grapes", "french fries", "bowling pins", "scales", "popcorn", "bacon", "corn"}
"""One of these has no article. (GenEval writes 'a skis'.)"""
