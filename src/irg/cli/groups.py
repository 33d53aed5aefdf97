"""Commands that have commands: ``irg data sprites``, ``irg bench mini``."""

from collections.abc import Callable, Mapping, Sequence

from irg.recipes import choose

Command = Callable[[Sequence[str]], int]


def dispatch(prog: str, commands: Mapping[str, tuple[Command, str]], argv: Sequence[str]) -> int:
    """Call the command named first, or list them all for ``--help`` and for nothing.

    Raises:
        ValueError: there is no such command.
    """
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
