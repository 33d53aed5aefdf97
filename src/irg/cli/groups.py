"""Commands that have commands: ``irg data sprites``, ``irg bench mini``."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from irg import registry
from irg.recipes import choose

Command = Callable[[Sequence[str]], int]


def dispatch(prog: str, commands: Mapping[str, tuple[Command, str]], argv: Sequence[str]) -> int:
    """Call the command named first, or list them all for ``--help`` and for nothing.

    Commands of plug-ins (:data:`irg.registry.COMMANDS`) stand beside the built-in ones.

    Raises:
        ValueError: there is no such command.
    """
    group = prog.removeprefix("irg ")
    commands = dict(commands) | _plugged(group, commands)
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, commands))
        print(f"usage: {prog} COMMAND ...\n")
        for name, (_, what) in commands.items():
            print(f"  {name:{width}}  {what}")
        return 0 if argv else 2
    name, *rest = argv
    if name not in commands:
        hint = choose(name, commands) or f" (there are: {', '.join(commands)})"
        raise ValueError(f"no command {name!r}{hint}")
    return commands[name][0](rest)


def _plugged(group: str, built_in: Mapping[str, object]) -> dict[str, tuple[Command, str]]:
    """Commands that installed packages add to a group; a built-in one can't be replaced."""
    found: dict[str, tuple[Command, str]] = {}
    for full in registry.names(registry.COMMANDS):
        start, _, name = full.partition(".")
        if start == group and name not in built_in:
            found[name] = (partial(_call, full), registry.summary(registry.COMMANDS, full))
    return found


def _call(name: str, argv: Sequence[str]) -> int:
    command: Command = registry.load(registry.COMMANDS, name)
    return command(argv)
