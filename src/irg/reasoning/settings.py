"""What a request may set, checked: the way of reasoning, the size, the thinking, and how each image is drawn.

The fields of :class:`Settings` and :class:`DrawSettings` are the one list of settings: options of the command line,
keyword arguments of the pipeline and dictionaries in recipes have these names (:func:`with_options`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from irg.critics.options import SELF, check_critic
from irg.deprecation import accepts_old_names, old_names, renamed, warn
from irg.engine.settings import IMPROVING, DrawSettings, choice, number, whole
from irg.reasoning.effort import Presets, with_effort
from irg.reasoning.sizes import ImageSizes, parse_size
from irg.recipes import build, choose

Mode = Literal["direct", "think", "irg"]
Look = Literal["both", "vit", "vae", "none"]
ReflectionContext = Literal["all", "prompt"]
Revise = Literal["reflection", "thinking"]
Fallback = Literal["self", "keep"]
"""What is done when a critic fails: the model reflects itself, or the image stays and the request ends."""
MAX_PROMPT_BYTES = 100_000
MAX_SEED = 2**63 - 1
MAX_SIDE = 65536
SIZE = "size"  # stands for width and height
EFFORT = "effort"  # stands for drawing settings that are not given beside it
CRITIC = "critic"  # in the place of a critic's name: the one that reflects
IMPROVE = "improve_"  # before a drawing setting's name: for later images
# settings of mode irg alone begin with these
_LATER = (IMPROVE, "rounds", "reflect", "max_reflect", "recall", "stop_", "look", "critic", "revise", "thinking_tries")
_OF_CRITIC = {"revise": "reflection", "thinking_tries": 1}  # as for the model itself
DRAW_FIELDS = tuple(DrawSettings.__dataclass_fields__)


@accepts_old_names
@dataclass(frozen=True)
class Settings:
    """All settings of a request but prompt and seed. The defaults are the paper's; a model brings its own.

    Attributes:
        mode: ``direct`` draws at once, ``think`` thinks first, ``irg`` then looks, reflects and draws again.
        rounds: for ``irg``: how many times at most the image is looked at and drawn again.
        height: of the image in pixels; given together with the width (default: the model's usual size).
        width: of the image in pixels; given together with the height.
        temperature: of the thinking; 0 always takes the likeliest token.
        reflect_temperature: of the reflections; default: that of the thinking.
        max_think_tokens: the most tokens of a thinking text or reflection.
        max_reflect_tokens: the most tokens of a reflection; default: ``max_think_tokens``.
        top_k: of texts: only so many likeliest tokens can be chosen; 0: all.
        top_p: of texts: of those, only the likeliest whose probabilities together reach it; 1: all.
        stop_when_done: for ``irg``: end early when a reflection says that nothing is wrong.
        look: for ``irg``: how an image is shown back: through the autoencoder and the ViT, one of them, or not at all.
        reflection_context: for ``irg``: what a reflection sees besides the image: ``all`` that went before, as in the
            paper, or the ``prompt`` alone, so that it has to look (for models trained with ``dropout.thinking``).
        critic: for ``irg``: who reflects and decides when it is done: ``self`` (the model), ``endpoint:MODEL``,
            ``hf:MODEL`` or a plug-in's name (``docs/critics.md``).
        revise: for ``irg``: what a flawed image is drawn again from: the ``reflection``, as in the paper, or a new
            ``thinking`` on the prompt alone.
        thinking_tries: for ``irg``: the most thinkings that are written for an image until the critic accepts one, if
            it reads texts; the tries after the first are sampled at a temperature of at least 1.
        critic_fallback: what is done when the critic fails: the model reflects itself, or ``keep`` the image and end.
        negative_prompt: what guidance leads away from: it stands in the unconditional text branch.
        candidates: images that are drawn independently of one another, each with its rounds; one is kept.
        select: who scores images: ``self`` (the model), ``critic`` (the one that reflects), ``endpoint:MODEL``,
            ``hf:MODEL``, ``judge:SPEC`` or a plug-in's name (``docs/search.md``).
        keep_best: keep the best judged image of all rounds, not the last one.
        budget_seconds: begin no candidate and no round after so many seconds; what is begun is finished.
        budget_images: draw at most so many images, all candidates and rounds together.
        initial: how the first image is drawn.
        improving: how every later image is drawn.

    Raises:
        ValueError: a value is of the wrong type or outside its range; the message names the field.
    """

    mode: Mode = "irg"
    rounds: int = 1
    height: int | None = None
    width: int | None = None
    temperature: float = 0.3
    reflect_temperature: float | None = None
    max_think_tokens: int = 4096
    max_reflect_tokens: int | None = None
    top_k: int = 0
    top_p: float = 1.0
    stop_when_done: bool = False
    look: Look = "both"
    reflection_context: ReflectionContext = renamed(was="recall", default="all")
    critic: str = SELF
    critic_fallback: Fallback = "self"
    revise: Revise = "reflection"
    thinking_tries: int = 1
    negative_prompt: str = ""
    candidates: int = 1
    select: str = "self"
    keep_best: bool = False
    budget_seconds: float | None = None
    budget_images: int | None = None
    initial: DrawSettings = field(default_factory=DrawSettings)
    improving: DrawSettings = IMPROVING

    def __post_init__(self) -> None:
        choice(self, "mode", get_args(Mode))
        choice(self, "look", get_args(Look))
        choice(self, "reflection_context", get_args(ReflectionContext))
        whole(self, "rounds", 1, 100, "mode 'think' draws one image only")
        for flag in ("stop_when_done", "keep_best"):
            if not isinstance(getattr(self, flag), bool):
                raise ValueError(f"{flag} must be true or false, got {getattr(self, flag)!r}")
        whole(self, "candidates", 1, 1000)
        if not isinstance(self.select, str) or not self.select:
            raise ValueError(f"select must be self, critic or a critic's name, got {self.select!r}")
        if self.budget_seconds is not None:
            number(self, "budget_seconds", 0.0, 1e6, "0 begins nothing after the first image")
        if self.budget_images is not None:
            whole(self, "budget_images", 1, 1_000_000)
        for side in ("height", "width"):
            if getattr(self, side) is not None:
                whole(self, side, 1, MAX_SIDE)
        if (self.height is None) != (self.width is None):
            raise ValueError(f"height and width must be given together, got height {self.height}, width {self.width}")
        number(self, "temperature", 0.0, 100.0, "0.3 is usual; 0 is greedy")
        if self.reflect_temperature is not None:
            number(self, "reflect_temperature", 0.0, 100.0, "0 is greedy")
        choice(self, "critic_fallback", get_args(Fallback))
        choice(self, "revise", get_args(Revise))
        whole(self, "thinking_tries", 1, 1000)
        if not isinstance(self.critic, str) or not self.critic:
            raise ValueError(f"critic must be {SELF} or the name of a critic, got {self.critic!r}")
        whole(self, "max_think_tokens", 1, 1_000_000)
        if self.max_reflect_tokens is not None:
            whole(self, "max_reflect_tokens", 1, 1_000_000)
        whole(self, "top_k", 0, 1_000_000, "0 is off")
        number(self, "top_p", 0.0, 1.0, "1 is off", above=True)
        if self.negative_prompt != "":
            try:
                check_prompt(self.negative_prompt)
            except ValueError as error:
                raise ValueError(f"negative_prompt: {error}") from error
        for name in ("initial", "improving"):
            if not isinstance(getattr(self, name), DrawSettings):
                raise ValueError(f"{name} must be a DrawSettings, got {getattr(self, name)!r}")

    def check_same_everywhere(self) -> None:
        """Raises:
        ValueError: a setting would let processes that run a model together go different ways.
        """
        if named := [name for name in (self.critic, self.select) if name not in (SELF, CRITIC)]:
            raise ValueError(f"with parallel the model reflects itself: {named[0]} may answer each process differently")
        if self.budget_seconds is not None:
            raise ValueError("with parallel each process has its own clock: give budget_images, not budget_seconds")

    def sized_by_image(self) -> "Settings":
        """The same without a size: requests about a given image take its own."""
        return replace(self, height=None, width=None)

    def draw(self, turn: int) -> DrawSettings:
        """How the image of turn ``turn`` (0 is the first) is drawn."""
        return self.improving if turn else self.initial

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"initial": self.initial.to_dict(), "improving": self.improving.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Settings":
        """The inverse of :meth:`to_dict`; fields left out keep their defaults.

        Raises:
            ValueError: a field is unknown, mistyped or out of range; nested ones are named ``initial.cfg_interval``.
        """
        return build(cls, data)


LOOP_SETTINGS = tuple(name for name in Settings.__dataclass_fields__ if name.startswith(_LATER))


def with_options(
    settings: Settings,
    options: Mapping[str, Any],
    sizes: ImageSizes | None = None,
    presets: Presets = MappingProxyType({}),
) -> Settings:
    """``settings`` with single values changed by name: fields of :class:`Settings`, fields of :class:`DrawSettings` for
    the first image, and the same with ``improve_`` before them for later images; ``size`` stands for width and height,
    ``effort`` for drawing settings that are not among the options. A ``critic`` without a ``mode`` means mode ``irg``.
    Where it takes another critic's place, ``revise`` and ``thinking_tries``, which were chosen for that one, are as for
    the model itself unless they are given, too.

    Args:
        sizes: the model's, for a ``size`` that is a ratio.
        presets: the model's, for an ``effort``.

    Raises:
        ValueError: a name is unknown or a value not acceptable; it is named as it was given.
    """
    options = dict(_with_pixels(options, sizes))
    if EFFORT in options:
        initial, improving = with_effort(options.pop(EFFORT), settings.initial, settings.improving, presets)
        settings = replace(settings, initial=initial, improving=improving)
    own: dict[str, Any] = {}
    first: dict[str, Any] = {}
    later: dict[str, Any] = {}
    renamed_names = old_names(Settings)
    for name, value in options.items():
        if name in renamed_names:
            warn(f"the setting {name}", renamed_names[name])
            name = renamed_names[name]
        if name in DRAW_FIELDS:
            first[name] = value
        elif name.removeprefix(IMPROVE) in DRAW_FIELDS:
            later[name.removeprefix(IMPROVE)] = value
        elif name in Settings.__dataclass_fields__:
            own[name] = value
        else:
            known = [
                *Settings.__dataclass_fields__,
                SIZE,
                EFFORT,
                *DRAW_FIELDS,
                *(IMPROVE + field for field in DRAW_FIELDS),
            ]
            raise ValueError(f"unknown setting {name!r}{choose(name, known)}; there are {', '.join(known)}")
    if own.get("critic", SELF) != SELF:
        own.setdefault("mode", "irg")
    if SELF != settings.critic != own.get("critic", settings.critic):
        own = _OF_CRITIC | own
    changed = replace(settings, **own)
    initial = replace(changed.initial, **first)
    try:
        improving = replace(changed.improving, **later)
    except ValueError as error:
        raise ValueError(f"{IMPROVE}{error}") from error
    return replace(changed, initial=initial, improving=improving)


def _with_pixels(options: Mapping[str, Any], sizes: ImageSizes | None) -> Mapping[str, Any]:
    """Width and height in the place of ``size``."""
    if SIZE not in options:
        return options
    if options.keys() & {"width", "height"}:
        raise ValueError("size stands for width and height: give it alone")
    size = options[SIZE]
    pixels = sizes.pixels(size) if sizes else parse_size(size)
    if not isinstance(pixels, tuple):
        raise ValueError(f"size {size}: how many pixels that is depends on the model; give WIDTHxHEIGHT")
    rest = {name: value for name, value in options.items() if name != SIZE}
    return rest | {"width": pixels[0], "height": pixels[1]}


def of_later_images(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options for requests whose first image is given: a drawing setting is that of every image that is drawn, whether
    it has the prefix or not. (From a new thinking an image is drawn as first ones are.)

    Raises:
        ValueError: it is there with the prefix and without.
    """
    changed: dict[str, Any] = {}
    for name, value in options.items():
        field = name.removeprefix(IMPROVE)
        if field not in DRAW_FIELDS:
            changed[name] = value
        elif field in changed:
            raise ValueError(f"{field} and {IMPROVE}{field} are the same where the first image is given")
        else:
            changed[field] = changed[IMPROVE + field] = value
    return changed


def check_options(options: Mapping[str, Any]) -> None:
    """Check settings by name before a model is there: what they are called, their values, and that the mode uses them.

    Raises:
        ValueError: see :func:`with_options`; or a setting has no meaning in the mode that is given with it.
    """
    with_options(Settings(), options, ImageSizes(usual=MAX_SIDE, stride=1, largest=MAX_SIDE))
    mode = options.get("mode", "irg")
    unused = next((name for name in options if name.startswith(_LATER)), None)
    if mode != "irg" and unused:
        raise ValueError(f"{unused} has no meaning in mode {mode!r}, which draws one image")
    if "select" in options:
        if not (options.get("keep_best") or options.get("candidates", 1) > 1):
            raise ValueError("select has no meaning for one image: give candidates or keep_best with it")
        if options["select"] == CRITIC and options.get("critic", SELF) == SELF:
            raise ValueError("select 'critic' needs a critic: give critic with it, or select by the critic's name")
    for name in named_critics(options):
        check_critic(name)


def named_critics(options: Mapping[str, Any]) -> list[str]:
    """The critics that settings name, as ``critic`` or for ``select``; nobody, where it is the model itself."""
    named = dict.fromkeys((options.get("critic", SELF), options.get("select", SELF)))
    return [name for name in named if name not in (SELF, CRITIC)]


def check_prompt(prompt: str) -> str:
    """The prompt, if it is one.

    Raises:
        ValueError: it is no text, empty, longer than MAX_PROMPT_BYTES in UTF-8, or not valid Unicode.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt must be text, got {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what to draw")
    try:
        size = len(prompt.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise ValueError("the prompt is not valid Unicode text (UTF-8)") from error
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"the prompt has {size:,} bytes; at most {MAX_PROMPT_BYTES:,} are taken")
    return prompt


def check_negative_prompt(settings: Settings, task: str) -> None:
    """Check that a negative prompt has an effect.

    Raises:
        ValueError: no image of the request is drawn with guidance by the text.
    """
    drawn = [settings.improving] if task != "generate" else [settings.initial]
    if task == "generate" and settings.mode == "irg":
        drawn.append(settings.improving)
    if settings.negative_prompt and all(one.cfg_text_scale <= 1 for one in drawn):
        raise ValueError("negative_prompt has no effect without guidance by the text: set cfg_text_scale above 1")


def check_seed(seed: int) -> int:
    """The seed, if it is one.

    Raises:
        ValueError: it is no whole number from 0 to MAX_SEED.
    """
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed must be a whole number from 0 to {MAX_SEED}, got {seed!r}")
    return seed
