"""Names that changed keep working for one version, with a ``DeprecationWarning`` that says the new one."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def warn(old: str, new: str, stacklevel: int = 3) -> None:
    """Say that ``old`` is now called ``new``."""
    warnings.warn(f"{old} is now called {new}; the old name goes with the next version", DeprecationWarning, stacklevel)


def renamed(was: str, **field: Any) -> Any:
    """A dataclass field that was called ``was``: recipes and command lines still take that name."""
    return dataclasses.field(metadata={"was": was}, **field)


def old_names(cls: Any) -> dict[str, str]:
    """Old name -> name, of a dataclass's fields."""
    return {field.metadata["was"]: field.name for field in dataclasses.fields(cls) if "was" in field.metadata}


def accepts_old_names(cls: type[T]) -> type[T]:
    """Class decorator, above ``@dataclass``: :func:`renamed` fields can be given and read by their old names."""
    table, made = old_names(cls), cls.__init__

    @functools.wraps(made)
    def init(self: Any, *values: Any, **fields: Any) -> None:
        for old in [name for name in fields if name in table]:
            warn(f"{cls.__name__}.{old}", table[old])
            fields[table[old]] = fields.pop(old)
        made(self, *values, **fields)

    def read(new: str, old: str) -> property:
        def get(self: Any) -> Any:
            warn(f"{cls.__name__}.{old}", new)
            return getattr(self, new)

        return property(get, doc=f"The old name of {new}.")

    cls.__init__ = init  # type: ignore[method-assign]
    for old, new in table.items():
        setattr(cls, old, read(new, old))
    return cls


def module_names(module: str, table: Mapping[str, Any]) -> Callable[[str], Any]:
    """A ``__getattr__`` for a module whose names changed: ``table`` is old name -> object."""

    def find(name: str) -> Any:
        if name not in table:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn(f"{module}.{name}", f"{module}.{table[name].__name__}")
        return table[name]

    return find
