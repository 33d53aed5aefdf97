"""Strict, typed reading of settings: plain data or YAML, plus ``--a.b value`` overrides, into frozen dataclasses.

Nothing is guessed: an unknown field, a missing one or a value of the wrong type is a ValueError that names the field by
its full path and says what would be right. Understood types: bool, int, float, str, Path, Literal, Optional and other
unions, ``list[T]``, ``tuple[T, ...]``, ``tuple[A, B]``, ``dict[str, T]``, Any, and dataclasses of all these. A union of
dataclasses is told apart by their field ``kind: Literal["..."]``. The only
conversions are int to float, list to tuple and str to Path.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from irg.deprecation import old_names, warn
from irg.text_files import read_text

T = TypeVar("T")
MOST_NESTED = 100
"""Lists and mappings inside one another; what is meant to be a recipe has four or five."""


@dataclasses.dataclass(frozen=True)
class _Raw:
    """A value as it was typed on the command line; the field's type decides whether it is text or YAML."""

    text: str


def load(cls: type[T], path: str | Path, overrides: Sequence[str] = ()) -> T:
    """Read the YAML file ``path`` into the dataclass ``cls``, with command-line ``overrides`` on top.

    ``overrides`` are the words as typed: ``["--optimizer.lr", "1e-4", "--steps=10"]``.

    Raises:
        ValueError: the file can't be read or is no YAML mapping; a field is unknown, missing or of the wrong type.
    """
    try:
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"{path}: can't read the recipe: {error}") from error
    try:
        data = _parse_yaml(text)
        if data is None:
            data = {}
        if not isinstance(data, dict):
            raise ValueError(f"a recipe is a mapping of fields, this is {_show(data)}")
        for name, value in _override_pairs(overrides):
            _put(data, name, value)
        return build(cls, data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def peek(path: str | Path, name: str) -> Any:
    """The value of a field at the top of a recipe's file, as YAML has it; None where there is none, or no recipe."""
    try:
        data = _parse_yaml(read_text(path))
    except ValueError:
        return None
    return data.get(name) if isinstance(data, dict) else None


def build(cls: type[T], data: Mapping[str, Any], where: str = "") -> T:
    """Make a ``cls`` from plain data; ``where`` is the path of field names so far, for messages.

    Raises:
        ValueError: a field is unknown, missing or of the wrong type, or ``cls`` itself refuses the values.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or cls.__name__}: expected a mapping of fields, got {_show(data)}")
    fields = {field.name: field for field in dataclasses.fields(cast(Any, cls)) if field.init}
    data = _by_new_names(cls, data, where)
    for name in data:
        if name not in fields:
            raise ValueError(_unknown(_join(where, str(name)), str(name), fields))
    hints = typing.get_type_hints(cls, include_extras=True)
    values = {name: _convert(hints[name], value, _join(where, name)) for name, value in data.items()}
    for name, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if name not in values and not has_default:
            raise ValueError(f"{_join(where, name)}: missing (it has no default)")
    try:
        return cls(**values)
    except ValueError as error:
        told = not where or str(error).startswith(where)
        raise ValueError(str(error) if told else f"{where}: {error}") from error


def _by_new_names(cls: type, data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """``data`` with fields that were renamed under their new names, and a warning for each."""
    renamed = {old: new for old, new in old_names(cls).items() if old in data}
    for old, new in renamed.items():
        if new in data:
            raise ValueError(f"{_join(where, old)}: is now called {new}, which is given, too")
        warn(_join(where, old), new)
    return {renamed.get(name, name): value for name, value in data.items()}


def choose(name: str, options: Iterable[str]) -> str:
    """``' (did you mean X?)'`` when an option is close to ``name``, else nothing."""
    close = difflib.get_close_matches(name, list(options), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def _unknown(path: str, name: str, allowed: Iterable[str]) -> str:
    allowed = sorted(allowed)
    return f"{path}: unknown field{choose(name, allowed)}; the fields here are {', '.join(allowed)}"


def _convert(kind: Any, value: Any, where: str) -> Any:
    """``value`` as a ``kind``; the error names ``where``."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        for extra in arguments[1:]:
            if hasattr(extra, "kinds"):  # further choices of a tagged union, by plug-ins (irg.registry.Plugins)
                return _convert(Union[(arguments[0], *extra.kinds())], value, where)
        return _convert(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, where)
    if isinstance(value, _Raw):
        value = _typed(kind, value.text, where)
    if kind is Any:
        return value
    if origin is Literal:
        if any(value == option and type(value) is type(option) for option in arguments):
            return value
        hint = choose(str(value), map(str, arguments))
        raise ValueError(f"{where}: must be one of {', '.join(map(str, arguments))}, got {_show(value)}{hint}")
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, cast(type, kind)) else build(cast(type, kind), value, where)
    if (origin or kind) in (list, tuple, dict):
        return _convert_collection(origin or kind, arguments, value, where)
    return _convert_plain(kind, value, where)


def _convert_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is kind or (kind is types.NoneType and value is None):
        return value
    name = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}.get(kind)
    raise ValueError(f"{where}: expected {name or getattr(kind, '__name__', kind)}, got {_show(value)}")


def _convert_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    optional = types.NoneType in kinds
    if optional and (value is None or (isinstance(value, _Raw) and value.text in ("null", "none", "None"))):
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    if isinstance(value, Mapping) and (tagged := _by_tag(others)):
        if (tag := value.get("kind")) not in tagged:
            got = "it is missing" if tag is None else f"got {_show(tag)}{choose(str(tag), tagged)}"
            raise ValueError(f"{_join(where, 'kind')}: must be one of {', '.join(tagged)}, {got}")
        return _convert(tagged[tag], value, where)
    reasons = []
    for kind in sorted(others, key=lambda kind: kind is str):  # text last: any word on the command line is text
        try:
            return _convert(kind, value, where)
        except ValueError as error:
            reasons.append(str(error).removeprefix(f"{where}: "))
    raise ValueError(f"{where}: {'; or '.join(reasons)}{' (or null)' if optional else ''}")


def _by_tag(kinds: Sequence[Any]) -> dict[str, Any]:
    """Dataclasses that a ``kind: Literal["..."]`` tells apart, by its value; nothing if these are others."""
    tagged = {}
    for kind in kinds:
        if not dataclasses.is_dataclass(kind) or "kind" not in (hints := typing.get_type_hints(kind)):
            return {}
        tagged[typing.get_args(hints["kind"])[0]] = kind
    return tagged


def _convert_collection(origin: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{where}: expected a mapping, got {_show(value)}")
        return {
            key: _convert(arguments[1] if arguments else Any, item, f"{where}.{key}") for key, item in value.items()
        }
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where}: expected a list, got {_show(value)}")
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise ValueError(f"{where}: expected {len(arguments)} values, got {len(value)}")
        kinds = arguments
    else:
        kinds = (arguments[0] if arguments else Any,) * len(value)
    pairs = zip(kinds, value, strict=True)
    return origin(_convert(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(pairs))


def _typed(kind: Any, text: str, where: str) -> Any:
    """What was typed for a field of this kind: text as it stands where text is wanted, else read as YAML."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if kind in (str, Path) or (choices and all(isinstance(option, str) for option in choices)):
        return text
    try:
        return _parse_yaml(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _override_pairs(words: Sequence[str]) -> Iterable[tuple[str, _Raw]]:
    remaining = iter(words)
    for word in remaining:
        if not re.match(r"--[A-Za-z_]", word):
            raise ValueError(f"expected --field value, got {word!r}")
        name, equals, value = word[2:].partition("=")
        if not equals:
            following = next(remaining, None)
            if following is None or re.match(r"--[A-Za-z_]", following):
                raise ValueError(f"{word}: a value must follow")
            value = following
        yield name.replace("-", "_"), _Raw(value)


def _put(data: dict[str, Any], name: str, value: _Raw) -> None:
    *parents, leaf = name.split(".")
    for depth, parent in enumerate(parents):
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ValueError(f"{'.'.join(parents[: depth + 1])}: is no mapping, so --{name} can't be set")
    data[leaf] = value


def _parse_yaml(text: str) -> Any:
    """YAML with three repairs: ``2e-5`` is a number (YAML 1.1 reads text), a key given twice is an error, and so
    is deep nesting, before the parser has spent seconds on it."""
    import yaml

    class Loader(yaml.SafeLoader):
        depth = 0

        def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
            self.depth += 1
            if self.depth > MOST_NESTED:
                raise ValueError("not a recipe: nested too deeply")
            node: yaml.Node | None = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise ValueError(f"{twice}: given twice (line {node.start_mark.line + 1} and below)")
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _show(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
