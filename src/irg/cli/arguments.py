"""Command-line words into a dataclass, with one clear line for a mistake.

The grammar, the same in every command that makes images (``generate``, ``bench run``, ``bench mini``):

* A setting of a request (the fields of ``Settings`` and ``DrawSettings``) is an option of its name: ``--rounds 2``,
  ``--cfg-text-scale 4``; for later images ``--improve-cfg-text-scale 2``. What is left out is the model's own.
* A setting that is true or false has two options, ``--stop-when-done`` and ``--no-stop-when-done``. An interval is
  ``--cfg-interval 0.4,1``. ``--size 128x96`` stands for ``--width 128 --height 96``; it may be a ratio, too.
* How a critic works (the fields of ``CriticOptions``): ``--critic-url``, ``--critic-budget`` and their like; who it is,
  ``--critic``, is a setting.
* The model and where it runs: ``--model --weights --lora --memory --device --protocol --system-prompt-file
  --offline`` (:class:`ModelOptions`).
* In recipes the same names are keys of a dictionary (``options: {cfg_text_scale: 4, mode: think}``), and fields of the
  recipe itself are options, nested ones with dots: ``irg train RECIPE.yaml --optimizer.lr 1e-4``.
* Old spellings (``--recall``, ``--always``, ``--set name=value``, ``--options name=value``) work for this version, with
  a line that says the new one.
"""

import contextlib
import io
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from irg import registry
from irg.critics.options import CriticOptions
from irg.deprecation import old_names
from irg.endpoints import json_object
from irg.engine.settings import DrawSettings
from irg.reasoning.effort import Effort
from irg.reasoning.protocols.official_texts import read_own_text
from irg.reasoning.settings import EFFORT, IMPROVE, SIZE, Settings, check_options, named_critics, of_later_images
from irg.reasoning.sizes import PRESETS, parse_size

T = TypeVar("T")
CRITIC = "critic_"  # before the name of one of CriticOptions
Memory = Literal["auto", "bf16", "int8", "int4", "fp8", "offload"]  # of the memory planner, which loads torch
Lora = Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATH[:SCALE]")]
FIRST = "First image: "  # begins the help of drawing settings without a prefix
_OF_PIPELINE = ("model", "device", "memory", "compile", "weights", "lora", "protocol", "offline")
_KINDS = {"INT": "a whole number", "FLOAT": "a number"}
_STYLE = (tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff)  # no "None" among the choices, no --no-json


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and where it runs."""

    model: str = "mini"
    """mini (bundled), a model folder, or a hub id such as ByteDance-Seed/BAGEL-7B-MoT; also owner/name@REVISION."""
    weights: str | None = None
    """Which weights of a folder with several: ema (averaged), model (plain), or NAME for NAME.safetensors. Default:
    weights, ema or model, the first that is there."""
    lora: Lora = ()
    """A low-rank adapter (ours, peft's, kohya's or diffusers', folder or file) to add, times SCALE. May be repeated."""
    memory: Memory = "auto"
    """How to fit the device: auto takes the first that fits; offload keeps layers in host memory."""
    device: str | None = None
    """cpu, cuda, or several that share the layers: cuda:0,cuda:1. Default: CUDA if there is one."""
    compile: bool = False
    """Compile writing and drawing (torch.compile) when they first happen: slow once, fewer launches after."""
    protocol: str | None = None
    """The way to reason, such as irg, bagel or umm-reflection. Default: the model's own (irg model info says which)."""
    system_prompt_file: str | None = None
    """A text that takes the place of the protocol's system prompt."""
    offline: bool = False
    """Download nothing: model and texts have to be here already."""

    def for_pipeline(self) -> dict[str, Any]:
        """Arguments of ``IRGPipeline.from_pretrained``.

        Raises:
            ValueError: there is no such protocol, or the system prompt can't be read.
        """
        if self.protocol is not None:
            registry.check(registry.PROTOCOLS, self.protocol, "protocol")
        system = None if self.system_prompt_file is None else read_own_text(Path(self.system_prompt_file))
        own = {name: getattr(self, name) for name in _OF_PIPELINE}
        return own | {"system_prompt": system}


def parse(kind: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    """Read ``argv`` into ``kind``; ``--help`` prints and exits with 0.

    Raises:
        ValueError: an argument is unknown, missing or of the wrong type.
    """
    return _parse(kind, _by_new_names(argv, old_names(kind)), prog, description)


def parse_with_settings(
    kind: type[T],
    argv: Sequence[str],
    prog: str,
    description: str,
    without: Sequence[str] = (),
    first_is_given: bool = False,
) -> tuple[T, dict[str, Any]]:
    """Read ``argv`` into ``kind`` and the settings of a request that the command line changes, by name.

    Args:
        without: settings that the command chooses itself; a field of ``kind`` takes the place of its namesake, too.
        first_is_given: the command draws no first image, so the drawing settings are those of later images.

    Raises:
        ValueError: an argument is unknown, missing or of the wrong type; a setting's value is not acceptable, or has
            no meaning in the mode.
    """
    own = fields(kind)  # type: ignore[arg-type]
    flags = _setting_flags((*without, *(one.name for one in own)), first_is_given)
    renamed = {**old_names(kind), **old_names(flags)}
    if "no_stop_when_done" in (one.name for one in fields(flags)):
        renamed["always"] = "no_stop_when_done"
    takes_critic = "critic_options" in (one.name for one in own)
    groups = [_group("generation", flags), *([_group("critics", _critic_flags())] if takes_critic else [])]
    extended = make_dataclass(kind.__name__, groups, bases=(kind,), frozen=True)
    given: Any = _parse(extended, _by_new_names(list(_flags_of_pairs(argv)), renamed), prog, description)
    changes = _changes(given.generation)
    if first_is_given:
        changes = of_later_images(changes)
    check_options(changes)
    values = {one.name: getattr(given, one.name) for one in own}
    if takes_critic:
        values["critic_options"] = _critic_options(given.critics, named_critics(changes))
    return kind(**values), changes


def _group(name: str, flags: type) -> tuple[str, Any, Any]:
    """A field for ``make_dataclass`` that adds a dataclass's options, without a prefix."""
    return name, Annotated[flags, tyro.conf.OmitArgPrefixes], field(default_factory=flags)


def _parse(kind: type[T], argv: Sequence[str], prog: str, description: str) -> T:
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, args=argv, prog=prog, description=description, config=_STYLE)
    except SystemExit as exit_:
        if exit_.code == 2:
            raise ValueError(f"{_first_sentence(errors.getvalue())} (see {prog} --help)") from exit_
        sys.stderr.write(errors.getvalue())
        raise


# ---- settings of a request as options


@cache
def _setting_flags(without: tuple[str, ...], first_is_given: bool) -> type:
    """A dataclass with an optional field for each setting: kinds and help are those of ``Settings``."""
    made: list[tuple[str, Any, Any]] = []
    for name, kind, text, metadata in _settings():
        if name in without or (first_is_given and name.startswith(IMPROVE)):
            continue
        text = text.removeprefix(FIRST) if first_is_given else text
        given: Any = field(default=None, metadata=metadata)
        if kind is bool:
            made.append((name, Annotated[bool, _help(text)], field(default=False, metadata=metadata)))
            made.append((f"no_{name}", Annotated[bool, _help(f"The opposite of {_flag(name)}.")], field(default=False)))
        elif typing.get_origin(kind) is tuple:
            made.append((name, Annotated[str | None, _help(text, "LOW,HIGH")], given))
        else:
            made.append((name, Annotated[kind | None, _help(text)], given))
    if not {"width", "height"} & set(without):
        text = "Width and height in pixels; or a ratio at the model's usual size, such as 16:9, or "
        text += f"{', '.join(PRESETS)}."
        made.append(("size", Annotated[str | None, _help(text, "WIDTHxHEIGHT")], field(default=None)))
    text = "Less or more work an image; drawing settings that are given beside it stand. Default: the model's settings."
    made.append((EFFORT, Annotated[Effort | None, _help(text)], field(default=None)))
    return make_dataclass("SettingOptions", made, frozen=True)


def _help(text: str, metavar: str | None = None) -> Any:
    return tyro.conf.arg(help=text[0].upper() + text[1:], metavar=metavar, help_behavior_hint="")


def _settings() -> Iterator[tuple[str, Any, str, Any]]:
    """(name, type, help, metadata) of every setting, in the order of the help."""
    for owner, start, who in ((Settings, "", ""), (DrawSettings, "", FIRST), (DrawSettings, IMPROVE, "")):
        hints, texts = typing.get_type_hints(owner), _attribute_texts(owner)
        for one in fields(owner):
            if hints[one.name] is not DrawSettings:
                text = f"Later images: as {one.name.replace('_', '-')}." if start else who + texts[one.name]
                yield start + one.name, _without_none(hints[one.name]), text, one.metadata


def _attribute_texts(owner: type) -> dict[str, str]:
    """What the docstring's section "Attributes" says of each field."""
    _, _, section = (owner.__doc__ or "").partition("Attributes:\n")
    section = section.partition("\n\n")[0].replace("``", "")
    return {name: " ".join(text.split()) for name, text in re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", section, re.M)}


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) not in (typing.Union, types.UnionType):
        return kind
    (only,) = (one for one in typing.get_args(kind) if one is not types.NoneType)
    return only


def _changes(given: Any) -> dict[str, Any]:
    """The settings that were given, as values for ``with_options``."""
    changes: dict[str, Any] = {}
    for one in fields(given):
        value = getattr(given, one.name)
        name = one.name.removeprefix("no_")
        if value is None or value is False:
            continue
        if value is True:
            if name in changes:
                raise ValueError(f"{_flag(name)} and {_flag(one.name)} exclude each other")
            changes[name] = name == one.name
        elif name.removeprefix(IMPROVE) == "cfg_interval":
            changes[name] = _interval(name, value)
        elif name == SIZE:
            if {"width", "height"} & changes.keys():
                raise ValueError("--size stands for --width and --height: give it alone")
            size = parse_size(value)
            changes |= {"width": size[0], "height": size[1]} if isinstance(size, tuple) else {SIZE: value}
        else:
            changes[name] = value
    return changes


def _interval(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ValueError(f"{name} must be LOW,HIGH (such as 0.4,1), got {text!r}") from error


# ---- how a critic works


@cache
def _critic_flags() -> type:
    """A dataclass with an optional field for each of ``CriticOptions``, with ``critic_`` before its name."""
    hints, texts = typing.get_type_hints(CriticOptions), _attribute_texts(CriticOptions)
    made: list[tuple[str, Any, Any]] = []
    for one in fields(CriticOptions):
        is_json = one.name == "extra"
        kind: Any = str if is_json else _without_none(hints[one.name])
        text = texts[one.name] + ("" if is_json or one.default is None else f" Default: {one.default}.")
        annotated = Annotated[kind | None, _help(text, "JSON" if is_json else None)]
        made.append((CRITIC + one.name, annotated, field(default=None)))
    return make_dataclass("CriticFlags", made, frozen=True)


def _critic_options(flags: Any, critics: Sequence[str]) -> CriticOptions:
    """Raises ValueError for an option that has no meaning, or a value that is not acceptable."""
    given = {one.name.removeprefix(CRITIC): getattr(flags, one.name) for one in fields(flags)}
    given = {name: value for name, value in given.items() if value is not None}
    if given and not critics:
        raise ValueError(f"{_flag(CRITIC + next(iter(given)))} has no meaning without --critic or --select")
    if "extra" in given:
        given["extra"] = json_object("--critic-extra", given["extra"])
    return CriticOptions(**given)


# ---- old spellings


def _by_new_names(argv: Sequence[str], old: dict[str, str]) -> list[str]:
    """The words with options that were renamed under their new names; each prints a line."""
    renamed = {_flag(was): _flag(name) for was, name in old.items()}
    words = []
    for word in argv:
        name, equals, value = word.partition("=")
        option = name.replace("_", "-")
        if option in renamed:
            print(f"{option} is now called {renamed[option]}", file=sys.stderr)
            words.append(renamed[option] + equals + value)
        else:
            words.append(word)
    return words


def _flags_of_pairs(argv: Sequence[str]) -> Iterator[str]:
    """``--set cfg_text_scale=4 look=vit`` -> ``--cfg-text-scale 4 --look vit``; prints a line for each pair."""
    old = None  # the option whose pairs are being read
    for word in argv:
        start, equals, rest = word.partition("=")
        if word.startswith("-"):
            old = start if start in ("--set", "--options") else None
            if old is None:
                yield word
                continue
            if not equals:
                continue
            word = rest
        if old is None:
            yield word
            continue
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{old} {word!r} should be name=value")
        new = [_flag(name), re.sub(r"[\[\] ]", "", value)]
        if value in ("true", "false"):
            new = [_flag(name if value == "true" else f"no_{name}")]
        print(f"{old} {word} is now {' '.join(new)}", file=sys.stderr)
        yield from new


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def image_size(text: str) -> tuple[int, int]:
    """(width, height) of what a user typed for a ``--size`` in pixels.

    Raises:
        ValueError: it is no size.
    """
    size = parse_size(text)
    if not isinstance(size, tuple):
        raise ValueError(f"--size must be WIDTHxHEIGHT or one number (such as 128 or 128x96), got {text!r}")
    return size


def _first_sentence(panel: str) -> str:
    """What a framed message says above its first rule, without colors and frame, and the nearest option it knows.

    Where the output can't show frames, the title stands alone above a rule of its own.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", panel)
    framed = "╭" in plain
    lines = [line.strip().strip("│").strip() for line in plain.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\s*[─-]{10,}\s*", " ".join(line for line in lines if line))
    message = paragraphs[0 if framed or len(paragraphs) == 1 else 1].replace(", 'None'", "").replace("'None', ", "")
    nearest = re.search(r"Perhaps you meant.*?(--[\w-]+)", " ".join(paragraphs))
    return _expected(message or "the arguments can't be read") + (f"; did you mean {nearest[1]}?" if nearest else "")


def _expected(message: str) -> str:
    """What was expected, in the words that recipes use, where a value could not be read."""
    option, _, why = message.removeprefix("Error parsing ").partition(": ")
    if not message.startswith("Error parsing "):
        return message
    if not option.startswith("-"):
        return why  # said by a dataclass's own check
    of_union = re.match(r"no type matching (\S+) could be instantiated from \[(.+?)\]", why)
    of_number = re.match(r"(?:invalid literal for|could not convert string to) (int|float).*?: (.+)", why)
    if not (found := of_union or of_number):
        return f"{option}: {why}"
    kinds = [_KINDS.get(kind.upper(), kind.strip("{}").replace(",", ", ")) for kind in found[1].split("|")]
    return f"{option}: expected {' or '.join(kinds)}, got {found[2]}"
