"""``irg train --dry-run`` of a recipe by reward: what a step would do and need, and what is wrong with the recipe.

Nothing is written by the model and nothing is scored: texts are taken to be as long as nominal ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from irg.engine.ops import Written
from irg.learning import plan as imitation
from irg.learning.costs import Work, forward_flops, memory_bytes, step_flops, work_of
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.plan import NOMINAL, Opened, Plan
from irg.learning.rl.drawings import drawing_prefix
from irg.learning.rl.packs import Learned, filled
from irg.learning.rl.prompts import Prompt
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Rewards
from irg.learning.rl.rollouts import Group, prefix_of, slots_of
from irg.learning.rl.trajectories import image_tokens, seen
from irg.model.network.config import ModelConfig
from irg.model.placement.kv_cache_size import bytes_per_slot
from irg.results.folder import encode_png
from irg.sequence.layout import TokenLayout, lay_out
from irg.sequence.parts import Part, Target, Text, noised_copies


@dataclass
class RLPlan(Plan):
    """A plan with what rollouts add."""

    texts: int = 0
    prefix: float = 0.0  # tokens, mean
    written: int = 0  # tokens of a text, as planned with
    packs: int = 0
    rollout_flops: float = 0.0


def make_plan(recipe: RLRecipe, gpus: int | None = None) -> RLPlan:
    """Look a recipe over, its prompts and rewards too."""
    plan = RLPlan(recipe, gpus or 1)
    opened = imitation.open_model(plan)
    plan.attempt(lambda: _check_prompts(recipe))
    plan.attempt(lambda: Rewards(recipe.rewards).close())
    if opened is None:
        return plan
    imitated = imitation.imitation_work(plan, opened) if recipe.imitates else Work()
    if opened.tokenizer is not None:
        plans = {"drawing": _drawings, "trajectory": _trajectories}
        plans.get(recipe.policy, _rollouts)(plan, recipe, opened, imitated)
    return plan


def _check_prompts(recipe: RLRecipe) -> None:
    recipe.prompts.check(recipe.policy == "reflection")
    if recipe.evaluate.every and recipe.evaluate.prompts is not None:
        recipe.evaluate.prompts.check(recipe.policy == "reflection")


def _prompts(plan: RLPlan, recipe: RLRecipe, config: ModelConfig) -> list[Prompt]:
    """Those of the first step; nominal ones where there are none, whose problem is told already."""
    count = recipe.rollout.prompts
    try:
        return recipe.prompts.draw(recipe.seed, 0, count)
    except ValueError:
        lengths = f"{NOMINAL['prompt']} tokens each, thinking {NOMINAL['thinking']}"
        plan.notes.append(f"no prompts could be read: they are guessed, {lengths}")
    side = config.vae_resize.max_size
    image = encode_png(Image.new("RGB", (side, side)), {}) if recipe.policy == "reflection" else None
    text, thinking = (4 * NOMINAL[name] * "x" for name in ("prompt", "thinking"))
    return [Prompt(text, {}, thinking if image else None, image)] * count


def _rollouts(plan: RLPlan, recipe: RLRecipe, opened: Opened, imitated: Work) -> None:
    """Work and memory of a step, from the first step's prompts and texts of nominal length."""
    assert opened.tokenizer is not None
    config = opened.config
    encoder = TrajectoryEncoder(config, opened.tokenizer, opened.profile)
    prompts = _prompts(plan, recipe, config)
    prefixes = plan.attempt(lambda: [prefix_of(prompt, encoder) for prompt in prompts])
    if prefixes is None:
        return
    plan.written = min(recipe.rollout.max_tokens, NOMINAL[recipe.policy])
    text = Written((), "", (0,) * plan.written, 0.0, True, (0.0,) * (plan.written + 1))
    samples = [
        Learned(Group(prompt, prefix, []), [text] * recipe.rollout.samples, [1.0] * recipe.rollout.samples)
        for prompt, prefix in zip(prompts, prefixes, strict=True)
    ]
    layouts = [lay_out(sample.parts, config.grammar) for sample in samples]
    own = [len(lay_out(prefix, config.grammar)) for prefix in prefixes]
    lengths = [len(layout) for layout in layouts]
    packs = [work_of([layouts[i] for i in members]) for members in filled(lengths, recipe.tokens_per_pack)]
    if max(lengths) > recipe.tokens_per_pack:
        plan.notes.append(
            f"a prompt with its {recipe.rollout.samples} texts has up to {max(lengths):,} tokens, more than "
            f"tokens_per_pack {recipe.tokens_per_pack:,}: it is a pack of its own"
        )
    plan.texts, plan.prefix = recipe.rollout.prompts * recipe.rollout.samples, sum(own) / len(own)
    written = plan.texts * (plan.written + 2)
    read = sum((work_of([lay_out(prefix, config.grammar)]) for prefix in prefixes), Work())
    decoded = Work(und=written, labels=written, pairs=int(written * (plan.prefix + plan.written / 2)))
    _add_up(plan, recipe, opened, packs, imitated, _forward(config, read + decoded))
    _add_cache(plan, recipe, opened, slots_of(max(own), recipe.rollout.max_tokens))


def _forward(config: ModelConfig, work: Work) -> float:
    return sum(forward_flops(config, work).values())


def _add_up(plan: RLPlan, recipe: RLRecipe, opened: Opened, packs: list[Work], imitated: Work, rollouts: float) -> None:
    """Operations and memory of a step: rollouts, packs, the supervised pack."""
    config, adapters = opened.config, bool(recipe.lora.rank)
    whole = sum(packs, Work())
    averaged = recipe.policy == "drawing" and recipe.drawing.learning == "nft"  # its old policy scores every pack
    before = (averaged or recipe.updates > 1) + recipe.measures_divergence
    plan.packs, plan.rollout_flops = len(packs), rollouts
    plan.flops = recipe.epochs * step_flops(config, whole, recipe.frozen, adapters)
    plan.flops += 0 if recipe.rollout.workers else rollouts
    plan.flops += before * _forward(config, whole)
    plan.flops += recipe.updates * plan.streams * step_flops(config, imitated, recipe.frozen, adapters)
    largest = max([*packs, imitated], key=lambda work: work.und + work.gen)
    shards = 1 if adapters else max(1, plan.gpus // recipe.parallel.replicas)
    plan.memory = memory_bytes(config, largest, plan.parameters, plan.trained, shards, recipe)
    if plan.gpus > 1 and not adapters and not recipe.rollout.workers:
        plan.memory["whole weights for rollouts"] = float(_itemsize(recipe) * plan.parameters)
    if averaged and recipe.rollout.ahead:
        plan.memory["policy that drew ahead"] = 4.0 * plan.trained / shards
    if recipe.measures_divergence and not adapters:
        plan.memory["reference"] = float(_itemsize(recipe) * plan.trained)


def _add_cache(plan: RLPlan, recipe: RLRecipe, opened: Opened, slots: int) -> None:
    """Memory of keys and values: a row of so many slots for each sample. Workers have it, and the model, beside."""
    workers = recipe.rollout.workers
    prompts = -(-recipe.rollout.prompts // (workers or plan.gpus))  # of one GPU
    rows = min(recipe.rollout.at_once or prompts, prompts) * recipe.rollout.samples
    bytes_ = rows * slots * bytes_per_slot(opened.config.decoder, _itemsize(recipe))
    if not workers:
        plan.memory["key-value cache"] = float(bytes_)
        return
    gigabytes = (_itemsize(recipe) * plan.parameters + bytes_) / 1e9
    plan.notes.append(
        f"rollouts are made by workers ({workers}) with {gigabytes:.1f} GB each: weights, keys and values"
    )


def _itemsize(recipe: RLRecipe) -> int:
    return 2 if recipe.parallel.precision == "bfloat16" else 4


def _drawings(plan: RLPlan, recipe: RLRecipe, opened: Opened, imitated: Work) -> None:
    """Work and memory of a step that learns from images."""
    assert opened.tokenizer is not None
    config, how = opened.config, recipe.drawing
    stride = config.image_stride
    try:
        how.check(stride)
    except ValueError as error:
        plan.problems.append(str(error))
        return
    encoder = TrajectoryEncoder(config, opened.tokenizer, opened.profile)
    prompts = _prompts(plan, recipe, config)
    grid, samples = (how.height // stride, how.width // stride), recipe.rollout.samples
    prefixes = [drawing_prefix(prompt, encoder) for prompt in prompts]
    targets: list[Part] = [Target(grid, noise=i) for i in range(samples * recipe.targets_per_image)]
    layouts = [lay_out([*prefix, *targets], config.grammar) for prefix in prefixes]
    lengths = [len(layout) for layout in layouts]
    packs = [work_of([layouts[i] for i in members]) for members in filled(lengths, recipe.tokens_per_pack)]
    one = sum((work_of([lay_out([*prefix, Target(grid)], config.grammar)]) for prefix in prefixes), Work())
    own = [len(lay_out(prefix, config.grammar)) for prefix in prefixes]
    plan.texts, plan.prefix = recipe.rollout.prompts * samples, sum(own) / len(own)
    _add_up(plan, recipe, opened, packs, imitated, samples * (how.num_timesteps - 1) * _forward(config, one))
    _add_cache(plan, recipe, opened, max(own))


def _trajectories(plan: RLPlan, recipe: RLRecipe, opened: Opened, imitated: Work) -> None:
    """Work and memory of a step that learns whole trajectories, each of which goes through all rounds."""
    assert opened.tokenizer is not None
    config, how, rollout, rounds = opened.config, recipe.drawing, recipe.rollout, recipe.credit.rounds
    try:
        how.check(config.image_stride)
    except ValueError as error:
        plan.problems.append(str(error))
        return
    encoder = TrajectoryEncoder(config, opened.tokenizer, opened.profile)
    prompts = _prompts(plan, recipe, config)
    prefixes = plan.attempt(lambda: [prefix_of(prompt, encoder) for prompt in prompts])
    if prefixes is None:
        return
    thinking, plan.written = (min(rollout.max_tokens, NOMINAL[name]) for name in ("thinking", "reflection"))
    image, text = seen(encoder, how).as_context(), Text((0,) * plan.written, loss=True)
    target = Target((how.height // config.image_stride, how.width // config.image_stride))
    targets = noised_copies([target], recipe.targets_per_image)
    given = [prompt.image is not None for prompt in prompts]
    roots = [
        prefix if has else [*prefix, Text((0,) * thinking), *image] for prefix, has in zip(prefixes, given, strict=True)
    ]
    samples = [[*root, *[text, *targets, *image] * (rounds - 1), text, *targets] for root in roots]

    def layouts(parts: Sequence[Sequence[Part]]) -> list[TokenLayout]:
        return [lay_out(some, config.grammar) for some in parts]

    siblings = [layout for layout in layouts(samples) for _ in range(rollout.samples)]
    members = filled([len(layout) for layout in siblings], recipe.tokens_per_pack)
    packs = [work_of([siblings[i] for i in some]) for some in members]
    own = [len(layout) for layout in layouts(roots)]
    plan.texts, plan.prefix = rollout.prompts * rollout.samples, sum(own) / len(own)
    step = _forward(config, work_of(layouts([[*root, text, target] for root in roots])))
    step -= _forward(config, work_of(layouts([[*root, text] for root in roots])))  # of an image on each root
    images = rollout.samples * rounds + 1 - sum(given) / len(given)
    read = _forward(config, work_of(siblings))
    _add_up(plan, recipe, opened, packs, imitated, read + (how.num_timesteps - 1) * images * step)
    later = (rounds - 1) * (rollout.max_tokens + 2 + image_tokens(encoder, how))
    _add_cache(plan, recipe, opened, slots_of(max(own), rollout.max_tokens) + later)


def _steps(recipe: RLRecipe) -> str:
    how = recipe.drawing
    stochastic = f", {how.window} of them stochastic and learned," if how.learning == "flow-grpo" else ""
    return f"{how.num_timesteps - 1} steps of the sampler{stochastic}"


def _share_of_rollouts(plan: RLPlan, recipe: RLRecipe) -> str:
    if recipe.rollout.workers:
        return f"rollouts: {plan.rollout_flops:.3e} operations a step, of all workers; not counted below"
    return f"rollouts are {plan.rollout_flops / plan.flops:.0%} of the operations below"


def report(plan: RLPlan) -> str:
    """The plan, to be read."""
    recipe = plan.recipe
    assert isinstance(recipe, RLRecipe)
    lines, how = [], recipe.rollout
    if plan.texts and recipe.policy == "drawing":
        lines = [
            f"images per step: {plan.texts:,} ({how.prompts} prompts x {how.samples}) of {recipe.drawing.height} x "
            f"{recipe.drawing.width} pixels, {_steps(recipe)} without guidance",
            f"packs of rollouts per step: {plan.packs}, optimizer steps: {recipe.updates}",
            _share_of_rollouts(plan, recipe),
        ]
    elif plan.texts and recipe.policy == "trajectory":
        size = f"{recipe.drawing.height} x {recipe.drawing.width} pixels"
        lines = [
            f"trajectories per step: {plan.texts:,} ({how.prompts} prompts x {how.samples}), up to "
            f"{recipe.credit.rounds} rounds: a text of {plan.written:,} tokens (nominal; at most {how.max_tokens:,}) "
            f"and an image of {size}, {_steps(recipe)} without guidance",
            f"they go on from first turns of {plan.prefix:,.0f} tokens, each of which stands in every sample",
            f"packs of rollouts per step: {plan.packs}, optimizer steps: {recipe.updates}",
            _share_of_rollouts(plan, recipe),
        ]
    elif plan.texts:
        lines = [
            f"texts per step: {plan.texts:,} ({how.prompts} prompts x {how.samples}), prefixes of {plan.prefix:,.0f} "
            f"tokens, texts of {plan.written:,} (nominal; at most {how.max_tokens:,})",
            f"packs of rollouts per step: {plan.packs}, optimizer steps: {recipe.updates}",
            _share_of_rollouts(plan, recipe),
        ]
    if plan.texts and recipe.policy != "drawing" and recipe.device != "cpu":
        plan.notes.append("decoding is bound by memory, not by operations: rollouts take several times their share")
    lines.append("rewards: " + ", ".join(f"{term.weight:g} x {term.name}" for term in recipe.rewards))
    return imitation.report(plan, lines)
