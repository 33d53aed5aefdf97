"""How far a build is, what it has cost, and what it will cost."""

from dataclasses import dataclass, field

from irg.curation.build_folder import BuildFolder
from irg.curation.stages import Stage
from irg.curation.store import Row
from irg.endpoints import AnswerCache, Endpoint

TOKENS_IN, TOKENS_OUT = 2000, 600  # assumed for a call before any is known


@dataclass
class StageProgress:
    """How far a stage is.

    Attributes:
        pending: rows that it has still to make, as far as they are not rejected before.
        reasons: kinds of rejections, with their numbers.
        examples: the words of one rejection of each kind.
        to_pay: estimate of what the pending rows will cost; None: it calls no endpoint.
        measured: whether the estimate rests on rows made here.
    """

    name: str
    accepted: int = 0
    rejected: int = 0
    pending: int = 0
    cost: float = 0.0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)
    to_pay: float | None = None
    measured: bool = False

    def count(self, row: Row) -> None:
        """Add a row that is made."""
        self.cost += row["cost"]
        self.seconds += row["seconds"]
        if row["rejected"] is None:
            self.accepted += 1
        else:
            self.rejected += 1
            reason, _, words = row["rejected"].partition(":")
            self.reasons[reason] = self.reasons.get(reason, 0) + 1
            self.examples.setdefault(reason, words.strip())


def progress_of(folder: BuildFolder) -> list[StageProgress]:
    """How far all stages are, read from disk."""
    found = {stage.name: StageProgress(stage.name) for stage in folder.stages}
    for block in folder.blocks():
        _count_block(folder, block, found)
    for stage in folder.stages:
        _estimate(stage, found[stage.name])
    return list(found.values())


def _count_block(folder: BuildFolder, block: int, found: dict[str, StageProgress]) -> None:
    """Count a block's rows. A row that is pending at one stage is so at the later ones, too."""
    turns = {name: row["turns"] for name, row in folder.prompts.read(block, ["id", "turns"]).items()}
    if folder.filtered is not None:
        verdicts = folder.filtered.read(block, ["id", "rejected"])
        turns = {n: t for n, t in turns.items() if n not in verdicts or verdicts[n]["rejected"] is None}
    for stage in folder.stages:
        progress = found[stage.name]
        rows = folder.stage_folders[stage.name].read(block, ["id", "rejected", "cost", "seconds"])
        for name in [name for name, number in turns.items() if number in stage.turns]:
            if name not in rows:
                progress.pending += 1
                continue
            progress.count(rows[name])
            if rows[name]["rejected"] is not None:
                del turns[name]


def _estimate(stage: Stage, progress: StageProgress) -> None:
    made = progress.accepted + progress.rejected
    progress.measured = made > 0 and progress.cost > 0
    if calls := stage.calls():
        guess = sum(number * assumed_price(endpoint) for endpoint, number in calls)
        per_row = progress.cost / made if progress.measured else guess
        progress.to_pay = progress.pending * per_row


def assumed_price(endpoint: Endpoint) -> float:
    """What a call is assumed to cost before any was made."""
    if endpoint.price_per_image:
        return endpoint.price_per_image
    return endpoint.cost({"prompt_tokens": TOKENS_IN, "completion_tokens": TOKENS_OUT})


def spent(folder: BuildFolder) -> float:
    """What this folder's answers have cost."""
    return AnswerCache(folder.answers).spent()
