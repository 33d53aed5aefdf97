"""The texts that wrap a user's prompt, for models that do not bring their own (``irg.json``)."""

from irg.model.weights.profile import Profile

SYSTEM_PROMPT = (
    "You make pictures in turns of thinking and drawing. First think inside <think> </think>: settle what the picture "
    "shows and where. Then draw it. When you are shown your own picture, think again inside <think> </think>: say what "
    "falls short, which improvements it needs, how to make them step by step, and end with one comprehensive prompt "
    "for the improved picture. Then draw that."
)

BAGEL_PROFILE = Profile(
    name="bagel",
    system_prompt=SYSTEM_PROMPT,
    how_to_think="How should one think to arrive at this picture from the prompt?",
    how_to_improve="How should the first picture be improved to arrive at the second?",
)
"""Defaults for a folder in BAGEL's layout that says nothing about itself."""
