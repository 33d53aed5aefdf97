"""``irg data checks``: rows that teach a model to check its own plans, and what it says that it sees (``world.check``).

``OUT/checks`` has conversations: the prompt, a list of things, the question, and the comparison as the answer. The
lists are the model's own plans and scenes of the world, as they are or changed. ``OUT/plans`` has some of the
right plans with their renderings, as rows of one turn: they hold planning and drawing while checking is learned.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irg.curation.records import TrajectoryRecord, png, write_shard
from irg.engine.ops import Write
from irg.evaluation.benchmarks.geneval_rules import HOLDS_ABOVE
from irg.files import sweep, written
from irg.learning.data.conversation_writer import text_part
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.rollouts import roll_out
from irg.reasoning.pipeline import IRGPipeline
from irg.results.reflection import is_done
from irg_mini import world
from irg_mini.data.requests import drawable, random_request
from irg_mini.world.placement import prompt_rank
from irg_mini.world.reflections import things_seen
from irg_mini.world.rules import apart, relation_strength
from irg_mini.world.scene import crowding, in_order

CROWDED_WEIGHTS = {
    "compound": 4.0,
    "stacking": 3.0,
    "position": 1.0,
    "color_attr": 0.9,
    "counting": 0.7,
    "two_object": 0.3,
    "colors": 0.3,
    "single_object": 0.1,
}
"""Most of the forms whose plans are most often wrong."""
FAR = 0.3
"""Share of requests in which others than the first two things are related: they are rare, and a model that hardly sees
any looks up the first two places of a list, whatever is related."""
TRIES = 40
"""To find one; about every tenth of these prompts is, in a vocabulary without things on others none."""
SIZE = 128
_THING_SIZES = ("small", "medium", "large")  # huge things leave no room for others
TOGETHER, PLANS = 32, 6
"""Prompts whose plans are written together, and plans of each."""
TEMPERATURES = (0.6, 1.0)
PLAN_SHARE = 0.65
"""Share of lists that are plans, whose background and overlaps count; the others are what is seen in an image."""
CHANGED = 3
"""Changed versions of each of the model's plans."""
BORDERLINE = 0.4
"""Share of lists in which something barely holds or barely fails. Of other mistakes few do, and a model that hardly
sees any takes whatever nearly stands on another thing for standing on it."""
CLEARNESS, COMMON = 0.3, (0.02, 0.25)
"""What is barely: a relation that is at most so much clearer or less clear than it must be (``relation_strength``), or
two things that share so much of the smaller one's box (``crowding``)."""
RIGHT = 2
"""Right plans of a prompt, at most, that become rows of one turn."""


@dataclass(frozen=True)
class Checks:
    """How many, and whose plans."""

    out: str
    model: str = "mini"
    """A model folder or a bundled model, whose plans are checked."""
    question: str = "Is it right?"
    """What is asked; irg.json of the model that learns it needs the same as how_to_check."""
    scenes: int = 60_000
    """Lists that are the world's."""
    prompts: int = 2_000
    """Prompts that the model plans for, six plans each."""
    forms: Literal["crowded", "all"] = "crowded"
    """Of which prompts: mostly those whose plans are most often wrong, or of all forms as training has them."""
    seed: int = 0
    rows_per_shard: int = 4_000
    sprites: Literal["fluent", "builtin"] = "fluent"
    vocab: Literal["core", "geneval", "full"] = "geneval"

    def __post_init__(self) -> None:
        if self.scenes < 0 or self.prompts < 0 or self.scenes + self.prompts < 1:
            raise ValueError(f"scenes and prompts: one must be positive, got {self.scenes} and {self.prompts}")
        if self.rows_per_shard < 1:
            raise ValueError(f"rows_per_shard must be at least 1, got {self.rows_per_shard}")
        if not self.question.strip():
            raise ValueError("question must not be empty")


def build(options: Checks) -> int:
    """Make all rows of which the shard is not there yet; returns how many conversations were made.

    Raises:
        ValueError: there is no such model, or the sprites are missing.
    """
    pipe = IRGPipeline.from_pretrained(options.model)
    world.load_sprites(options.sprites)
    out, made = Path(options.out), 0
    for folder in (out / "checks", out / "plans"):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    for name, count, size in (
        ("scenes", options.scenes, options.rows_per_shard),
        ("planned", options.prompts, max(1, options.rows_per_shard // PLANS)),
    ):
        for shard in range(-(-count // size)):
            path = out / "checks" / f"{name}-{shard:05d}.parquet"
            if path.exists():
                continue
            part, rng = min(size, count - shard * size), np.random.default_rng([options.seed, shard, len(name), 41])
            if name == "scenes":
                rows = _of_scenes(options, part, rng, pipe.profile.system_prompt)
            else:
                rows, plans = _of_plans(options, part, rng, pipe)
                write_shard(plans, out / "plans" / f"part-{shard:05d}.parquet")
            _write(rows, path)
            made += len(rows)
    return made


def _write(rows: Sequence[str], path: Path) -> None:
    with written(path) as temporary:
        pq.write_table(pa.table({"conversation": list(rows)}), temporary, compression="zstd")


def _requests(options: Checks, rng: np.random.Generator) -> Iterator[tuple[world.Request, str]]:
    vocab = drawable(options.vocab, world.load_sprites(options.sprites))
    weights = CROWDED_WEIGHTS if options.forms == "crowded" else None
    if weights is not None and "on" not in vocab.relations:
        weights = {tag: weight for tag, weight in weights.items() if tag != "stacking"}
    while True:
        far = rng.random() < FAR
        one = random_request(rng, vocab, {"compound": 1.0} if far else weights)
        for _ in range(TRIES * far):
            if _far(one[0]):
                break
            one = random_request(rng, vocab, {"compound": 1.0})
        yield one


def _far(request: world.Request) -> bool:
    """Whether others than the first two things are related."""
    related = ({index, entry.position[1]} for index, entry in enumerate(request.include) if entry.position is not None)
    return any(pair != {0, 1} for pair in related)


class _Balanced:
    """Conversations on one request after another, of which about half say that nothing is wrong: a model that sees few
    flaws learns to find none."""

    def __init__(self, options: Checks, system: str) -> None:
        self.rows: list[str] = []
        self._options, self._system, self._right = options, system, 0

    def add(self, request: world.Request, prompt: str, scene: world.Scene, plan: bool, text: str | None = None) -> bool:
        """Add a list of things, unless it is a right one too many. ``text``: a plan, as the model wrote it. Returns
        whether it is right."""
        scene = scene if plan else as_seen(request, scene)
        answer = world.check(request, scene, plan, SIZE)
        right = is_done(answer)
        if right and 2 * self._right > len(self.rows):
            return right
        self._right += right
        listed = text or (world.think(request, scene) if plan else world.list_of_seen(scene.things))
        said = [{"role": "user", "content": part} for part in (self._system, prompt, listed, self._options.question)]
        self.rows.append(json.dumps([*said, {"role": "assistant", "content": [text_part(answer, loss=True)]}]))
        return right


def _of_scenes(options: Checks, count: int, rng: np.random.Generator, system: str) -> list[str]:
    """Conversations on the world's scenes, right or changed."""
    requests, found = _requests(options, rng), _Balanced(options, system)
    while len(found.rows) < count:
        request, prompt = next(requests)
        try:
            scene = world.sample_scene(request, rng)
        except ValueError:  # no room for it all
            continue
        found.add(request, prompt, _variant(options, request, scene, rng), rng.random() < PLAN_SHARE)
    return found.rows


def _of_plans(
    options: Checks, count: int, rng: np.random.Generator, pipe: IRGPipeline
) -> tuple[list[str], list[TrajectoryRecord]]:
    """Conversations on the model's own plans, as they are and changed; and :data:`RIGHT` right plans of each prompt, if
    there are any, as rows of one turn."""
    requests, found = _requests(options, rng), _Balanced(options, pipe.profile.system_prompt)
    right_ones: list[TrajectoryRecord] = []
    for start in range(0, count, TOGETHER):
        some = [next(requests) for _ in range(min(TOGETHER, count - start))]
        for (request, prompt), texts in zip(some, write_plans(pipe, [p for _, p in some], rng), strict=True):
            right = list[tuple[str, world.Scene]]()
            for text in dict.fromkeys(texts):
                try:
                    scene = world.parse_layout(text)
                except ValueError:  # a model's thinking need not be a layout
                    continue
                if found.add(request, prompt, scene, plan=True, text=text):
                    right.append((text, scene))
                for _ in range(CHANGED):
                    found.add(request, prompt, _variant(options, request, scene, rng), rng.random() < PLAN_SHARE)
            right_ones += [_rendered(options, request, prompt, *one) for one in right[:RIGHT]]
    return found.rows, right_ones


def write_plans(pipe: IRGPipeline, prompts: Sequence[str], rng: np.random.Generator) -> list[list[str]]:
    """:data:`PLANS` plans of each prompt, at one of :data:`TEMPERATURES`."""
    write = Write(pipe.defaults.max_think_tokens, float(rng.choice(TEMPERATURES)))
    seeds = rng.integers(2**62, size=(len(prompts), PLANS)).tolist()
    runner, tokenizer = pipe.engine.runner, pipe.engine.tokenizer
    assert tokenizer is not None
    encoder = TrajectoryEncoder(pipe.config, tokenizer, pipe.profile)
    groups = roll_out(runner.model, runner.autoencoder, encoder, [Prompt(p) for p in prompts], write, seeds)
    return [[text.text for text in group.texts] for group in groups]


def _rendered(options: Checks, request: world.Request, prompt: str, text: str, scene: world.Scene) -> TrajectoryRecord:
    image = png(world.render(scene, SIZE, world.load_sprites(options.sprites)))
    source = f"plan:{Path(options.model).name}"
    return TrajectoryRecord(
        prompt, text, image, request=json.dumps(request.to_json()), source=source, license="Apache-2.0"
    )


def as_seen(request: world.Request, scene: world.Scene) -> world.Scene:
    """What a perfect look at a scene's image lists: every color, too."""
    return world.Scene(scene.background, things_seen(request, world.see(scene, SIZE), SIZE))


def _variant(options: Checks, request: world.Request, scene: world.Scene, rng: np.random.Generator) -> world.Scene:
    """Something to check that is like a scene: borderline or changed."""
    found = borderline_scene(request, scene, rng) if rng.random() < BORDERLINE else None
    return found or changed_scene(request, scene, rng, options.vocab)


def borderline_scene(request: world.Request, scene: world.Scene, rng: np.random.Generator) -> world.Scene | None:
    """A scene with a thing moved a little, or near another one, or of another size, in which something that the request
    asks for barely holds or barely fails; None if none is found."""
    for _ in range(TRIES if scene.things else 0):
        index, other = (int(i) for i in rng.integers(len(scene.things), size=2))
        kind = rng.random()
        if kind < 0.5:
            found = _moved(request, scene, index, index, 2, rng)
        elif kind < 0.75:
            found = _moved(request, scene, index, other, 3, rng)
        else:
            things = list(scene.things)
            things[index] = replace(things[index], size=str(rng.choice(_THING_SIZES)))
            found = world.Scene(scene.background, in_order(things, prompt_rank(request)))
        if found.things != scene.things and _is_borderline(request, found):
            return found
    return None


def _is_borderline(request: world.Request, scene: world.Scene) -> bool:
    related = [
        relation_strength(one.box, other.box, entry.position[0]) - HOLDS_ABOVE
        for entry in request.include
        if entry.position is not None
        for one, other in permutations(scene.things, 2)
        if (one.name, other.name) == (entry.name, request.include[entry.position[1]].name)
    ]
    common = [crowding(one.box, other.box) for one, other in apart(request, scene)]
    return any(abs(margin) < CLEARNESS for margin in related) or any(COMMON[0] < c < COMMON[1] for c in common)


def changed_scene(
    request: world.Request, scene: world.Scene, rng: np.random.Generator, vocab: str = "geneval"
) -> world.Scene:
    """A scene as it is, with mistakes of all kinds, nearly right, with a thing or two moved a little (most often), or
    with one moved beside or over another, or with one left out or become another one's double."""
    kind = rng.choice(6, p=(0.08, 0.14, 0.15, 0.34, 0.12, 0.17))
    if not scene.things:  # a plan of a model may be empty
        return scene
    if kind == 1:
        scene, _ = world.corrupt(request, scene, rng, vocab)
    elif kind == 2:
        scene = world.near_miss(request, scene, rng)
    elif kind == 3:
        for _ in range(int(rng.integers(1, 3))):
            index = int(rng.integers(len(scene.things)))
            scene = _moved(request, scene, index, index, 2, rng)
    elif kind == 4 and len(scene.things) > 1:
        index, other = (int(i) for i in rng.choice(len(scene.things), 2, replace=False))
        scene = _moved(request, scene, index, other, 2, rng)
    elif kind == 5:
        scene = _lacking(request, scene, rng)
    if rng.random() < 0.03:
        scene = world.Scene(str(rng.choice(list(world.BACKGROUNDS))), scene.things)
    return scene


def _lacking(request: world.Request, scene: world.Scene, rng: np.random.Generator) -> world.Scene:
    """A scene without one of its things; as often, that thing is of another one's class instead, as in plans that say
    one thing twice."""
    things = list(scene.things)
    index, other = (int(i) for i in rng.integers(len(things), size=2))
    if rng.random() < 0.5 and things[index].name != things[other].name:
        things[index] = replace(things[index], name=things[other].name, color=things[other].color)
    else:
        del things[index]
    return world.Scene(scene.background, in_order(things, prompt_rank(request)))


def _moved(
    request: world.Request, scene: world.Scene, index: int, near: int, reach: int, rng: np.random.Generator
) -> world.Scene:
    """A scene with one thing moved to within so many cells of a thing's place."""
    things = list(scene.things)
    place = things[near]
    col, row = (int(np.clip(at + rng.integers(-reach, reach + 1), 0, world.GRID - 1)) for at in (place.col, place.row))
    things[index] = replace(things[index], col=col, row=row)
    return world.Scene(scene.background, in_order(things, prompt_rank(request)))
