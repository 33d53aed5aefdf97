"""Strict reading of recipes: what is taken, and that every refusal names the field."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from irg import recipes


@dataclass(frozen=True)
class Optimizer:
    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 2e-5
    betas: tuple[float, float] = (0.9, 0.95)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}")


@dataclass(frozen=True)
class Recipe:
    steps: int
    name: str = "run"
    data: tuple[str, ...] = ()
    optimizer: Optimizer = field(default_factory=Optimizer)
    limit: int | None = None
    label: str | None = None
    out: Path = Path("out")
    fast: bool = False
    extra: dict[str, float] = field(default_factory=dict)
    rate: int | str = 1
    stages: list[Optimizer] = field(default_factory=list)
    anything: Any = None


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return recipes.load(Recipe, path, overrides)


def test_everything_is_read_with_its_type(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        """
        steps: 10
        data: [a, b]
        optimizer: {kind: muon, lr: 2e-5, betas: [1, 0.5]}
        limit: null
        out: some/where
        fast: true
        extra: {x: 1}
        rate: fastest
        stages: [{lr: 1}, {}]
        anything: [1, {a: b}]
        """,
    )
    assert recipe == Recipe(
        steps=10,
        data=("a", "b"),
        optimizer=Optimizer("muon", 2e-5, (1.0, 0.5)),
        out=Path("some/where"),
        fast=True,
        extra={"x": 1.0},
        rate="fastest",
        stages=[Optimizer(lr=1.0), Optimizer()],
        anything=[1, {"a": "b"}],
    )
    assert isinstance(recipe.optimizer.betas[0], float)


def test_command_line_words_win_and_take_the_fields_type(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "steps: 10\noptimizer: {lr: 1.0}",
        *("--steps", "20", "--optimizer.lr=3e-4", "--optimizer.kind", "muon", "--name", "123", "--data", "[x, y]"),
        *("--limit", "-5", "--label", "null", "--out", "1e3", "--fast", "true", "--rate", "7"),
    )
    assert recipe.steps == 20 and recipe.optimizer == Optimizer("muon", 3e-4)
    assert recipe.name == "123" and recipe.data == ("x", "y") and recipe.limit == -5
    assert recipe.label is None and recipe.out == Path("1e3") and recipe.fast is True and recipe.rate == 7


@pytest.mark.parametrize(
    ("text", "overrides", "told"),
    [
        ("steps: 1\noptimzer: {}", [], "optimzer: unknown field (did you mean 'optimizer'?); the fields here are"),
        ("steps: 1\noptimizer: {lrr: 1}", [], "optimizer.lrr: unknown field (did you mean 'lr'?)"),
        ("name: x", [], "steps: missing"),
        ("steps: ten", [], "steps: expected a whole number, got 'ten'"),
        ("steps: 1.0", [], "steps: expected a whole number, got 1.0"),
        ("steps: true", [], "steps: expected a whole number, got True"),
        ("steps: 1\nfast: 1", [], "fast: expected true or false, got 1"),
        ("steps: 1\nname: 5", [], "name: expected text, got 5"),
        ("steps: 1\nname:", [], "name: expected text, got nothing"),
        ("steps: 1\noptimizer: 5", [], "optimizer: expected a mapping of fields, got 5"),
        ("steps: 1\noptimizer: {kind: muno}", [], "optimizer.kind: must be one of adamw, muon, got 'muno' (did you"),
        ("steps: 1\noptimizer: {betas: [1]}", [], "optimizer.betas: expected 2 values, got 1"),
        ("steps: 1\noptimizer: {betas: [1, x]}", [], "optimizer.betas[1]: expected a number, got 'x'"),
        ("steps: 1\noptimizer: {lr: -1}", [], "optimizer.lr must be positive, got -1.0"),
        ("steps: 1\ndata: abc", [], "data: expected a list, got 'abc'"),
        ("steps: 1\nlimit: x", [], "limit: expected a whole number, got 'x' (or null)"),
        ("steps: 1\nextra: {x: y}", [], "extra.x: expected a number"),
        ("steps: 1\nstages: [{}, {lr: x}]", [], "stages[1].lr: expected a number"),
        ("steps: 1\nsteps: 2", [], "steps: given twice"),
        ("- 1", [], "a recipe is a mapping of fields"),
        ("steps: [", [], "not valid YAML"),
        ("[" * 1000, [], "nested too deeply"),
        ("", [], "steps: missing"),
        ("steps: 1", ["--stpes", "2"], "stpes: unknown field (did you mean 'steps'?)"),
        ("steps: 1", ["--steps"], "--steps: a value must follow"),
        ("steps: 1", ["--steps", "--fast"], "--steps: a value must follow"),
        ("steps: 1", ["steps", "2"], "expected --field value, got 'steps'"),
        ("steps: 1", ["--steps.deep", "2"], "steps: is no mapping"),
        ("steps: 1", ["--steps", "x"], "steps: expected a whole number, got 'x'"),
        ("steps: 1", ["--steps", "[1"], "steps: not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_with_file_and_field(tmp_path: Path, text: str, overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(tmp_path, text, *overrides)
    message = str(caught.value)
    assert told in message and "recipe.yaml: " in message and "\n" not in message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml: can't read the recipe: No such file"):
        recipes.load(Recipe, tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"out: \xff")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        recipes.load(Recipe, tmp_path / "binary.yaml")


def test_tags_that_would_run_code_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not valid YAML"):
        read(tmp_path, "steps: !!python/object/apply:os.getpid []")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml")), ids=lambda p: p.name)
def test_every_recipe_in_the_repository_is_valid(path, own_plugins):
    if path.parent.name == "data":
        pytest.importorskip("openai", reason="needs the extra data")
        from irg.curation.plan import row_stages
        from irg.curation.recipe import DataRecipe

        assert row_stages(recipes.load(DataRecipe, path))
        return
    from irg.learning.recipe import TrainRecipe
    from irg.learning.rl.recipe import RLRecipe

    kind = RLRecipe if recipes.peek(path, "kind") == "rl" else TrainRecipe
    assert recipes.load(kind, path).steps > 0


def test_peek_says_a_field_of_a_file_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text("kind: rl\nsteps: 3\n")
    assert (recipes.peek(file, "kind"), recipes.peek(file, "none"), recipes.peek(tmp_path, "kind")) == (
        "rl",
        None,
        None,
    )
    file.write_text("- a list\n")
    assert recipes.peek(file, "kind") is None


@dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    side: float


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]
    radius: float = 1.0


@dataclass(frozen=True)
class Drawing:
    shapes: list[Square | Circle]
    frame: Square | Circle | None = None


def test_a_kind_tells_dataclasses_apart() -> None:
    drawing = recipes.build(Drawing, {"shapes": [{"kind": "circle"}, {"kind": "square", "side": 2}], "frame": None})
    assert drawing == Drawing([Circle("circle"), Square("square", 2.0)])
    for shape, told in (
        ({"kind": "sqare"}, r"shapes\[0\]\.kind: must be one of square, circle, got 'sqare' \(did you mean 'square'"),
        ({"side": 1}, r"shapes\[0\]\.kind: must be one of square, circle, it is missing"),
        ({"kind": "square", "radius": 1}, r"shapes\[0\]\.radius: unknown field; the fields here are kind, side"),
        ({"kind": "square"}, r"shapes\[0\]\.side: missing"),
        ("circle", r"shapes\[0\]: expected a mapping of fields, got 'circle'"),
    ):
        with pytest.raises(ValueError, match=told):
            recipes.build(Drawing, {"shapes": [shape]})
