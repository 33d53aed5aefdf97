"""Inputs that several nodes have, and the options of irg that they stand for. 0 (or -1) leaves a value to the model."""

from typing import Any

from comfy_api.latest import io

Model = io.Custom("IRG_MODEL")
RemoteModel = io.Custom("IRG_SERVER")
Context = io.Custom("IRG_CONTEXT")
MODES = ["irg", "think", "direct"]
AUTO = "auto"
MAX_SEED = 2**63 - 1  # the most that irg takes


def prompt() -> io.String.Input:
    return io.String.Input("prompt", multiline=True, default="", tooltip="What the image should show.")


def mode() -> io.Combo.Input:
    tooltip = "irg: think, draw, then look, reflect and draw again. think: think and draw. direct: draw at once."
    return io.Combo.Input("mode", options=MODES, default="irg", tooltip=tooltip)


def size() -> io.String.Input:
    tooltip = "WIDTHxHEIGHT, one number, a ratio such as 16:9, or auto: the model's usual size."
    return io.String.Input("size", default=AUTO, tooltip=tooltip)


def seed(tooltip: str = "The same inputs and seed give the same result.") -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=MAX_SEED, control_after_generate=True, tooltip=tooltip)


def reseed() -> io.Boolean.Input:
    tooltip = (
        "Off: the random numbers of the step before go on, and all steps give what IRG Generate gives. "
        "On: they begin anew with this node's seed."
    )
    return io.Boolean.Input("reseed", default=False, tooltip=tooltip)


def steps() -> io.Int.Input:
    return io.Int.Input("steps", default=0, min=0, max=1000, tooltip="Updates of each image; 0: the model's own.")


def guidance(name: str = "guidance", of: str = "the image") -> io.Float.Input:
    tooltip = f"Guidance of {of} by the text; 1: none, 0: the model's own."
    return io.Float.Input(name, default=0.0, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def image_guidance() -> io.Float.Input:
    tooltip = "Guidance of later images by the image before; 1: none, 0: the model's own."
    return io.Float.Input("image_guidance", default=0.0, min=0.0, max=100.0, step=0.1, tooltip=tooltip)


def temperature() -> io.Float.Input:
    tooltip = "Of the text; 0 takes the likeliest words, -1: the model's own."
    return io.Float.Input("temperature", default=-1.0, min=-1.0, max=10.0, step=0.05, tooltip=tooltip)


def max_tokens() -> io.Int.Input:
    tooltip = "The most tokens of the text; 0: the model's own."
    return io.Int.Input("max_tokens", default=0, min=0, max=100_000, tooltip=tooltip)


def critic() -> io.String.Input:
    tooltip = "Who says what is wrong: self (the model), endpoint:MODEL, hf:MODEL, a plug-in's name; empty: as usual."
    return io.String.Input("critic", default="", optional=True, tooltip=tooltip)


def revise() -> io.Combo.Input:
    tooltip = "What a flawed image is drawn again from: the reflection, or a new thinking; auto: the model's own way."
    options = [AUTO, "reflection", "thinking"]
    return io.Combo.Input("revise", options=options, default=AUTO, optional=True, tooltip=tooltip)


def negative_prompt() -> io.String.Input:
    tooltip = "What guidance leads away from."
    return io.String.Input("negative_prompt", default="", multiline=True, optional=True, tooltip=tooltip)


def own_text(what: str) -> io.String.Input:
    tooltip = f"Takes the place of the model's {what}; empty: the model writes it."
    return io.String.Input("own_text", default="", multiline=True, optional=True, tooltip=tooltip)


def given(**options: Any) -> dict[str, Any]:
    """The options that are set: not 0, -1, empty or ``auto``. ``steps`` becomes points of the time grid."""
    prefixes = ("", "improve_")
    chosen = {name: value for name, value in options.items() if value not in (None, "", AUTO)}
    for name, value in list(chosen.items()):
        left_to_model = value == -1 if name.endswith("temperature") else value == 0
        if left_to_model and type(value) in (int, float):
            del chosen[name]
    for prefix in prefixes:
        if (updates := chosen.pop(f"{prefix}steps", None)) is not None:
            chosen[f"{prefix}num_timesteps"] = updates + 1
    return chosen


def check_values(
    prompt: str | None = None, mode: str | None = None, size: str | None = None, critic: str | None = None
) -> bool | str:
    """True, or what is wrong with values that ComfyUI does not check by the schema (None: linked, not known yet).

    Without irg in ComfyUI's Python (with a server only) the server tells it.
    """
    if mode is not None and mode not in MODES:
        return f"mode must be one of {', '.join(MODES)}, got {mode!r}"
    try:
        from irg.reasoning.settings import check_options, check_prompt
    except ImportError:
        return True
    try:
        if prompt is not None:
            check_prompt(prompt)
        check_options(given(mode=mode, size=size, critic=None if critic == "self" else critic))
    except ValueError as error:
        return str(error)
    return True
