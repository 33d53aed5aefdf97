"""What may be asked of the served model: its protocol's tasks and modes, with the critics that the server allows."""

from dataclasses import dataclass

from irg.critics.options import SELF
from irg.reasoning.protocols.base import Protocol, Task
from irg.reasoning.settings import Mode
from irg.serving.options import ServerOptions


@dataclass(frozen=True)
class Capabilities:
    """What requests to a server can be.

    Attributes:
        tasks, modes: in the protocol's order.
        critics: who may reflect in the loop, the model's usual one first: ``self`` is the model.
        max_rounds: times that an image can be looked at and drawn again.
        revises: a flaw may be answered by a new thinking (the setting ``revise``).
    """

    tasks: tuple[Task, ...]
    modes: tuple[Mode, ...]
    critics: tuple[str, ...]
    max_rounds: int
    revises: bool

    @classmethod
    def of(cls, protocol: Protocol, usual: str, options: ServerOptions) -> "Capabilities":
        """Those of a protocol behind a server. A model that does not reflect by itself needs a critic for its loop.

        Args:
            usual: the critic of the model's own settings.
        """
        others = () if "critic" in protocol.unused else options.critics
        critics = tuple(dict.fromkeys((usual, SELF, *others)))
        if not protocol.reflects:
            critics = tuple(critic for critic in critics if critic != SELF)
        most = options.limits.max_rounds
        return cls(
            tuple(task for task in protocol.tasks if critics or task != "improve"),
            tuple(mode for mode in protocol.modes if critics or mode != "irg"),
            critics,
            most if protocol.max_rounds is None else min(most, protocol.max_rounds),
            "revise" not in protocol.unused,
        )
