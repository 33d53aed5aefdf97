"""The mini world as a judge of rows: kind ``miniworld``."""

from dataclasses import dataclass
from typing import Any, Literal

from irg.curation.parts import Parts, RowJudge
from irg.curation.resources import Resources
from irg.curation.stages import Grader, Stage, accepted, score_columns
from irg.curation.store import Row
from irg.image_files import open_image
from irg_mini import world
from irg_mini.data.stages import (
    BY,
    MiniDrafts,
    MiniTargets,
    Sprites,
    WorldStage,
    ground_truth,
    intended_scene,
    load_detector,
    request_of,
    see_all,
)
from irg_mini.world.rules import SCORE_THRESHOLD

SeenPair = tuple[Any, Any]
"""What is seen in draft and target (lists of ``world.Seen``); None: no detector has looked."""
POOR = 4.0  # quality of a degraded image; a clean one has 10


def verdict(request: world.Request, seen: list[world.Seen], quality: str | None, size: int) -> tuple[float, float]:
    """(prompt following, quality), 0 to 10: 10 / (1 + number of flaws), and 10 for a clean image."""
    flaws = world.find_flaws(request, seen, size=size, threshold=SCORE_THRESHOLD)
    return round(10 / (1 + len(flaws)), 3), 10.0 if quality is None else POOR


def preserved(request: world.Request, before: list[world.Seen], after: list[world.Seen], size: int) -> float:
    """Which share of what was right in the draft is still in its place (give or take a cell), times 10."""
    flawed = [flaw.thing for flaw in world.find_flaws(request, before, size=size, threshold=SCORE_THRESHOLD)]
    names = world.classes()
    old = [world.snap(s.name, s.color, s.box, size) for s in before if s.name in names and s.score > SCORE_THRESHOLD]
    new = [world.snap(s.name, s.color, s.box, size) for s in after if s.name in names and s.score > SCORE_THRESHOLD]
    right = [thing for thing in old if thing not in flawed]
    kept = 0
    for thing in right:
        same = [x for x in new if x.name == thing.name and max(abs(x.col - thing.col), abs(x.row - thing.row)) <= 1]
        if same:
            new.remove(same[0])
            kept += 1
    return round(10 * kept / len(right), 3) if right else 10.0


@dataclass(frozen=True)
class MiniRowJudge(RowJudge):
    """The mini world's verdict: 10 or less by what a detector finds wrong, or by the truth of the scene (null)."""

    kind: Literal["miniworld"]
    name: str = "world"
    detector: str | None = None
    size: int = 128
    sprites: Sprites = "fluent"

    def check(self, parts: Parts) -> None:
        rendered = isinstance(parts.draft, MiniDrafts | None) and isinstance(parts.target, MiniTargets | None)
        if self.detector is None and not rendered:
            raise ValueError(f"judges: {self.name} knows only rendered images; set its detector (label-detector)")

    def stage(self, parts: Parts) -> Stage:
        return WorldJudgeStage(self)

    def grader(self) -> Grader:
        from irg_mini.world.detector import LABEL_DETECTOR

        return DetectorGrader(self.detector or LABEL_DETECTOR)

    def make(self, row: Row, seen: SeenPair = (None, None)) -> Row:
        """The standard scores; the order in which images are shown makes no difference here."""
        request, size = request_of(row), self.size
        before, after = seen
        poor = None
        if after is None:
            scene = intended_scene(row, request)
            if row["turns"] == 2:
                before, poor = ground_truth(row, size)
                scene = world.parse_layout(world.parse_reflection(row["reflection"]).final_prompt)
            after = world.see(scene, size)
        scores: dict[str, Any] = {}
        target_following, target_quality = verdict(request, after, None, size)
        if row["turns"] == 2:
            draft_following, draft_quality = verdict(request, before, poor, size)
            gain = round(target_following + target_quality - draft_following - draft_quality, 3)
            scores = {
                "draft_following": draft_following,
                "draft_quality": draft_quality,
                "preservation": preserved(request, before, after, size),
                "gain_1": gain,
                "gain_2": gain,
            }
        scores |= {"target_following": target_following, "target_quality": target_quality}
        prefixed = {f"{self.name}_{name}": value for name, value in scores.items()}
        return accepted(row, BY | {"detector": self.detector}, **prefixed)


class WorldJudgeStage(WorldStage):
    """The mini world's scores of a row."""

    reads = ("draft", "reflect", "target")

    def __init__(self, config: MiniRowJudge) -> None:
        super().__init__(config, **score_columns(config.name))

    def look(self, rows: list[Row]) -> list[Any]:
        """What the detector sees in each row's draft (None in one-turn rows) and target."""
        drafts = iter(see_all(self.detector, [row["image"] for row in rows if row["turns"] == 2]))
        targets = see_all(self.detector, [row["improved"] for row in rows])
        return [(next(drafts) if row["turns"] == 2 else None, one) for row, one in zip(rows, targets, strict=True)]


class DetectorGrader(Grader):
    """Grades of single images, by what a detector finds wrong."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    async def open(self, resources: Resources) -> None:
        self.resources, self.detector = resources, load_detector(resources, self.folder)

    async def grades(self, row: Row, images: list[bytes]) -> list[tuple[float, float]]:
        request = request_of(row)
        seen = await self.resources.run_in_model_thread(see_all, self.detector, images)
        size = open_image(images[0]).width
        return [verdict(request, one, None, size) for one in seen]
