"""``irg train --dry-run`` of a recipe by reward: what a step would do and need, and what is wrong with the recipe.

Nothing is written by the model and nothing is scored: texts are taken to be as long as nominal ones.
"""

from dataclasses import dataclass

from irg.engine.ops import Written
from irg.learning import plan as imitation
from irg.learning.costs import Work, forward_flops, memory_bytes, step_flops, work_of
from irg.learning.data.samples import TrajectoryEncoder
from irg.learning.plan import NOMINAL, Opened, Plan
from irg.learning.rl.drawings import drawing_prefix
from irg.learning.rl.packs import Learned, filled
from irg.learning.rl.recipe import RLRecipe
from irg.learning.rl.rewards import Rewards
from irg.learning.rl.rollouts import Group, prefix_of, slots_of
from irg.model.placement.kv_cache_size import bytes_per_slot
from irg.sequence.layout import lay_out
from irg.sequence.parts import Part, Target


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
    ready = plan.attempt(lambda: _checked(recipe))
    plan.attempt(lambda: Rewards(recipe.rewards).close())
    if opened is None:
        return plan
    imitated = imitation.imitation_work(plan, opened) if recipe.imitates else Work()
    if ready and opened.tokenizer is not None:
        (_drawings if recipe.policy == "drawing" else _rollouts)(plan, recipe, opened, imitated)
    return plan


def _checked(recipe: RLRecipe) -> bool:
    recipe.prompts.check(recipe.policy == "reflection")
    if recipe.evaluate.every and recipe.evaluate.prompts is not None:
        recipe.evaluate.prompts.check(recipe.policy == "reflection")
    return True


def _rollouts(plan: RLPlan, recipe: RLRecipe, opened: Opened, imitated: Work) -> None:
    """Work and memory of a step, from the first step's prompts and texts of nominal length."""
    assert opened.tokenizer is not None
    config, adapters = opened.config, bool(recipe.lora.rank)
    encoder = TrajectoryEncoder(config, opened.tokenizer, opened.profile)
    prompts = plan.attempt(lambda: recipe.prompts.draw(recipe.seed, 0, recipe.rollout.prompts))
    prefixes = plan.attempt(lambda: [prefix_of(prompt, encoder) for prompt in prompts]) if prompts else None
    if prompts is None or prefixes is None:
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
    plan.texts, plan.packs = recipe.rollout.prompts * recipe.rollout.samples, len(packs)
    plan.prefix = sum(own) / len(own)
    whole = sum(packs, Work())
    before = (recipe.updates > 1) + (recipe.loss.kl > 0)
    written = plan.texts * (plan.written + 2)
    read = sum((work_of([lay_out(prefix, config.grammar)]) for prefix in prefixes), Work())
    decoded = Work(und=written, labels=written, pairs=int(written * (plan.prefix + plan.written / 2)))
    plan.rollout_flops = sum(forward_flops(config, read + decoded).values())
    plan.flops = recipe.epochs * step_flops(config, whole, recipe.frozen, adapters)
    plan.flops += before * sum(forward_flops(config, whole).values()) + plan.rollout_flops
    plan.flops += recipe.updates * plan.streams * step_flops(config, imitated, recipe.frozen, adapters)
    largest = max([*packs, imitated], key=lambda work: work.und + work.gen)
    plan.memory = memory_bytes(config, largest, plan.parameters, plan.trained, 1, recipe)
    itemsize = 2 if recipe.parallel.precision == "bfloat16" else 4
    slots = slots_of(own, recipe.rollout.max_tokens)
    rows = (recipe.rollout.at_once or recipe.rollout.prompts) * recipe.rollout.samples
    plan.memory["key-value cache"] = float(rows * slots * bytes_per_slot(config.decoder, itemsize))
    if recipe.loss.kl and not adapters:
        plan.memory["reference"] = float(itemsize * plan.trained)


def _drawings(plan: RLPlan, recipe: RLRecipe, opened: Opened, imitated: Work) -> None:
    """Work and memory of a step that learns from images."""
    assert opened.tokenizer is not None
    config, adapters, how = opened.config, bool(recipe.lora.rank), recipe.drawing
    stride = config.image_stride
    try:
        how.check(stride)
    except ValueError as error:
        plan.problems.append(str(error))
        return
    encoder = TrajectoryEncoder(config, opened.tokenizer, opened.profile)
    prompts = plan.attempt(lambda: recipe.prompts.draw(recipe.seed, 0, recipe.rollout.prompts))
    if prompts is None:
        return
    grid, samples = (how.height // stride, how.width // stride), recipe.rollout.samples
    prefixes = [drawing_prefix(prompt, encoder) for prompt in prompts]
    targets: list[Part] = [Target(grid, noise=i) for i in range(samples * recipe.noise_copies)]
    layouts = [lay_out([*prefix, *targets], config.grammar) for prefix in prefixes]
    lengths = [len(layout) for layout in layouts]
    packs = [work_of([layouts[i] for i in members]) for members in filled(lengths, recipe.tokens_per_pack)]
    one = sum((work_of([lay_out([*prefix, Target(grid)], config.grammar)]) for prefix in prefixes), Work())
    own = [len(lay_out(prefix, config.grammar)) for prefix in prefixes]
    plan.texts, plan.packs, plan.prefix = recipe.rollout.prompts * samples, len(packs), sum(own) / len(own)
    whole = sum(packs, Work())
    plan.rollout_flops = samples * (how.num_timesteps - 1) * sum(forward_flops(config, one).values())
    plan.flops = recipe.epochs * step_flops(config, whole, recipe.frozen, adapters) + plan.rollout_flops
    plan.flops += sum(forward_flops(config, whole).values())
    plan.flops += recipe.updates * plan.streams * step_flops(config, imitated, recipe.frozen, adapters)
    largest = max([*packs, imitated], key=lambda work: work.und + work.gen)
    plan.memory = memory_bytes(config, largest, plan.parameters, plan.trained, 1, recipe)


def report(plan: RLPlan) -> str:
    """The plan, to be read."""
    recipe = plan.recipe
    assert isinstance(recipe, RLRecipe)
    lines, how = [], recipe.rollout
    if plan.texts and recipe.policy == "drawing":
        lines = [
            f"images per step: {plan.texts:,} ({how.prompts} prompts x {how.samples}) of {recipe.drawing.height} x "
            f"{recipe.drawing.width} pixels, {recipe.drawing.num_timesteps - 1} steps of the sampler without guidance",
            f"packs of rollouts per step: {plan.packs}, optimizer steps: {recipe.updates}",
            f"rollouts are {plan.rollout_flops / plan.flops:.0%} of the operations below",
        ]
    elif plan.texts:
        share = plan.rollout_flops / plan.flops
        lines = [
            f"texts per step: {plan.texts:,} ({how.prompts} prompts x {how.samples}), prefixes of {plan.prefix:,.0f} "
            f"tokens, texts of {plan.written:,} (nominal; at most {how.max_tokens:,})",
            f"packs of rollouts per step: {plan.packs}, optimizer steps: {recipe.updates}",
            f"rollouts are {share:.0%} of the operations below",
        ]
        if recipe.device != "cpu":
            plan.notes.append("decoding is bound by memory, not by operations: rollouts take several times their share")
    lines.append("rewards: " + ", ".join(f"{term.weight:g} x {term.name}" for term in recipe.rewards))
    return imitation.report(plan, lines)
