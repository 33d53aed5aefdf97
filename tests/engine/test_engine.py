"""The engine on a small random model: what is cached, batched and shared changes no result."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from irg.engine import scheduler
from irg.engine.cache import Context
from irg.engine.engine import Engine
from irg.engine.events import DenoiseStep, ImageDone, RequestDone, TextDelta
from irg.engine.ops import Draw, Drawn, Forget, Look, Operation, Program, Said, Say, Write
from irg.engine.request import Denoising, Request
from irg.engine.runner import Runner
from irg.engine.settings import IMPROVING, DrawSettings
from irg.model.network.packed_attention import PackedAttention
from irg.model.network.token_batch import StreamOrder, token_batch
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.protocols.base import Job, Step
from irg.reasoning.protocols.irg import IRG
from irg.reasoning.settings import Settings
from irg.sequence import DroppedImage, Latents, Part, Patches, Target, Text, lay_out
from irg.sequence.images import patchify
from irg.sequence.parts import noised_copies

SHORT = DrawSettings(num_timesteps=4, cfg_text_scale=3.0)


class SteadyRunner(Runner):
    """Decodes to two gray levels, so that rounding errors of the last bit do not become other pixels to look at."""

    def decode_latents(self, latents_BChw: Tensor) -> Tensor:
        return torch.sign(super().decode_latents(latents_BChw)) * 0.5


@pytest.fixture
def runner(tiny_loaded: LoadedModel) -> Runner:
    """A runner whose cache has to grow."""
    return SteadyRunner(tiny_loaded.model, tiny_loaded.autoencoder, rows=1, slots=16)


@pytest.fixture
def fresh(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> Callable[[], Engine]:
    """Makes an engine with a cache of its own."""
    return lambda: Engine(SteadyRunner(tiny_loaded.model, tiny_loaded.autoencoder, rows=2, slots=64), tiny_tokenizer)


def held(runner: Runner, context: Context) -> Tensor:
    """A copy of a context's keys and values."""
    slabs = (*runner.cache.keys_SKE, *runner.cache.values_SKE)
    slots = slice(0) if context.row is None else runner.cache.slots_of(context.row, context.length)
    return torch.stack([slab[slots] for slab in slabs]).clone()


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------- training and inference agree

grids = st.tuples(st.integers(1, 3), st.integers(1, 3))
texts = st.builds(Text, st.lists(st.integers(0, 255), max_size=4).map(tuple))
parts = st.one_of(
    texts,
    texts,
    st.builds(Latents, grids),
    st.builds(Patches, grids),
    st.builds(Target, grids),
    st.just(DroppedImage()),
)


def filled(sequence: Sequence[Part], runner: Runner, seed: int) -> list[Part]:
    """The parts with random content; a target's is a noised image, as tokens, and its time."""
    config, out = runner.config, []
    for i, part in enumerate(sequence):
        key = 100 * seed + i
        match part:
            case Patches():
                out.append(replace(part, content=noise(key, part.tokens, config.vit.patch_values)))
            case Latents(grid):
                patch, channels = config.latent_patch_size, config.autoencoder.z_channels
                out.append(replace(part, content=noise(key, channels, grid[0] * patch, grid[1] * patch)))
            case Target():
                content = (noise(key, part.tokens, config.latent_values), float(noise(key, 1).sigmoid()))
                out.append(replace(part, content=content))
            case _:
                out.append(part)
    return out


@torch.no_grad()
def packed(runner: Runner, samples: Sequence[Sequence[Part]]) -> list[tuple[Tensor, Tensor]]:
    """Hidden states of every sample in reading order, and velocities of its latent tokens, by the training forward."""
    model, layouts = runner.model, [lay_out(sample, runner.grammar) for sample in samples]
    latents, times, patches = [], [], []
    for part in (part for sample in samples for part in sample):
        match part:
            case Patches():
                patches.append(part.content)
            case Latents():
                latents.append(patchify(part.content, runner.config.latent_patch_size))
                times.append(torch.zeros(part.tokens))
            case Target():
                latents.append(part.content[0])
                times.append(torch.full((part.tokens,), part.content[1]))
    order = StreamOrder.of(layouts)
    x_GD, t_G = (torch.cat(latents), torch.cat(times)) if latents else (None, None)
    batch = token_batch(layouts, order, torch.cat(patches) if patches else None, x_GD, t_G)
    hidden_UC, hidden_GC = model(batch, PackedAttention(layouts, order))
    hidden = hidden_UC if hidden_GC is None else torch.cat([hidden_UC, hidden_GC])
    hidden = hidden[torch.from_numpy(order.stream_of_T)]
    velocity = torch.zeros(len(hidden), runner.config.latent_values)
    if hidden_GC is not None and x_GD is not None and t_G is not None:
        velocity[torch.from_numpy(order.gen_T)] = model.velocity(hidden_GC, x_GD, t_G)
    lens = [len(layout) for layout in layouts]
    return list(zip(hidden.split(lens), velocity.split(lens), strict=True))


def check_incrementally(runner: Runner, samples: Sequence[Sequence[Part]], at_once: Callable[[], bool]) -> None:
    """Append the samples to contexts bit by bit, one context each, and hold every token against the training forward.

    Targets are velocity predictions on the context so far, all copies in one forward; ``at_once`` says whether a part
    waits to be appended together with the next.
    """
    for sample, (hidden, velocity) in zip(samples, packed(runner, samples), strict=True):
        context, start, pending = runner.cache.new(), 0, []

        def flush() -> None:
            nonlocal start, pending
            if all(isinstance(part, DroppedImage) for part in pending):  # no tokens: only the position goes on
                context.position, pending = context.position + len(pending), []  # noqa: B023
            if (got := runner.extend([(context, pending)])) is not None:  # noqa: B023
                assert torch.allclose(got, hidden[start : start + len(got)], atol=1e-5)  # noqa: B023
                start += len(got)
            pending = []

        index = 0
        while index < len(sample):
            part = sample[index]
            if isinstance(part, Target):
                flush()
                group = sample[index : index + 8]
                group = group[: next((i for i, p in enumerate(group) if not isinstance(p, Target)), len(group))]
                x = torch.cat([p.content[0] for p in group])
                t = torch.cat([torch.full((p.tokens,), p.content[1]) for p in group])
                got = runner.branches([(context, p.grid) for p in group]).velocity(x, t)
                for p, piece in zip(group, got.split([p.tokens for p in group]), strict=True):
                    assert torch.allclose(piece, velocity[start + 1 : start + 1 + p.tokens], atol=1e-5)
                    start += p.tokens + 2
                index += len(group)
            else:
                pending.append(part)
                index += 1
                if not at_once():
                    flush()
        flush()
        assert start == len(hidden)
        assert context.position == lay_out(sample, runner.grammar).next_position
        runner.cache.free(context)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(parts, min_size=1, max_size=6), min_size=1, max_size=3), st.integers(1, 3), st.randoms())
def test_packed_training_is_incremental_inference(
    tiny_loaded: LoadedModel, sequences: list[list[Part]], copies: int, random: Any
) -> None:
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder, rows=1, slots=4)
    samples = [
        filled(noised_copies(sequence, copies), runner, seed)
        for seed, sequence in enumerate(sequences)
        if any(not isinstance(part, DroppedImage) for part in sequence)
    ]
    if samples:
        check_incrementally(runner, samples, lambda: random.random() < 0.5)
    assert runner.cache.rows_in_use == 0


def test_a_whole_trajectory_packed_and_incrementally(runner: Runner) -> None:
    """The IRG sequence, with three noised copies of both images drawn."""
    sequence = [
        *(Text((5, 6)), Text((7,)), Text((8, 9, 10)), Target((2, 3))),
        *(Latents((2, 3)), Patches((2, 2)), Text((11, 12)), Target((2, 3))),
    ]
    dropped = [DroppedImage() if isinstance(part, Latents) else part for part in sequence]
    samples = [filled(noised_copies(s, 3), runner, seed) for seed, s in enumerate([sequence, dropped])]
    check_incrementally(runner, samples, lambda: False)


# ------------------------------------------------------------------------------------- company changes nothing

JOBS: list[tuple[str, Job]] = [
    ("irg", Job("red", "sys", Settings(mode="irg", rounds=2, temperature=0.0, max_think_tokens=4, initial=SHORT,
        improving=replace(IMPROVING, num_timesteps=3)), 32, 48)),
    ("direct", Job("a blue cube", "sys", Settings(mode="direct", initial=replace(SHORT, cfg_text_scale=1.0)), 32, 32)),
    ("think", Job("two", "", Settings(mode="think", temperature=1.0, max_think_tokens=7, initial=replace(
        SHORT, num_timesteps=9, solver="unipc", network_interval=2)), 48, 32)),
    ("irg", Job("green dog", "sys", Settings(mode="irg", temperature=0.8, max_think_tokens=5, improving=DrawSettings(
        num_timesteps=4, cfg_img_scale=1.5, cfg_interval=(0.3, 0.9), cfg_renorm_type="channel", cfg_renorm_min=0.2),
        initial=replace(SHORT, num_timesteps=3)), 32, 48)),
    ("direct", Job("x", "s", Settings(mode="direct", initial=replace(SHORT, cfg_renorm_type="channel")), 32, 32)),
]  # fmt: skip


def programs(chosen: Sequence[int] = range(len(JOBS))) -> list[tuple[Program, int]]:
    """(program, seed) of the jobs; the seed is the job's own."""
    return [(IRG().program(JOBS[i][1]), 50 + i) for i in chosen]


@pytest.fixture(scope="module")
def alone(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> list[list[Step]]:
    """Every job on an engine of its own."""
    results = []
    for i in range(len(JOBS)):
        engine = Engine(SteadyRunner(tiny_loaded.model, tiny_loaded.autoencoder), tiny_tokenizer)
        results += engine.run(programs([i]))
    return results


def same(got: list[Step], wanted: list[Step]) -> None:
    assert len(got) == len(wanted)
    for a, b in zip(got, wanted, strict=True):
        if b.thinking is not None:
            assert a.thinking is not None
            assert (a.thinking.ids, a.thinking.text) == (b.thinking.ids, b.thinking.text)
        assert a.image is not None and b.image is not None
        assert torch.allclose(a.image.latents, b.image.latents, atol=1e-5)
        assert np.array_equal(np.asarray(a.image.image), np.asarray(b.image.image))


@pytest.mark.parametrize("limit", [0, 2, scheduler.MAX_DECODE_TURNS_BEFORE_DENOISE])
def test_all_together_as_each_alone(
    fresh: Callable[[], Engine], alone: list[list[Step]], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "MAX_DECODE_TURNS_BEFORE_DENOISE", limit)
    engine = fresh()
    for got, wanted in zip(engine.run(programs()), alone, strict=True):
        same(got, wanted)
    assert engine.runner.cache.rows_in_use == 0


@pytest.mark.parametrize("gap", [1, 7])
def test_late_comers(fresh: Callable[[], Engine], alone: list[list[Step]], gap: int) -> None:
    """A new request every ``gap`` turns, the last first."""
    engine, order = fresh(), list(range(len(JOBS)))[::-1]
    session = engine.session()
    for i in order:
        ((program, seed),) = programs([i])
        session.add(program, seed, i)
        for _ in range(gap):
            engine.step()
    results = {event.request: event.value for event in session if isinstance(event, RequestDone)}
    for i, wanted in enumerate(alone):
        same(results[i], wanted)


def test_seeds(fresh: Callable[[], Engine]) -> None:
    """The same seed gives the same request again, another gives another, beside each other or not."""
    _, job = JOBS[2]
    a, b, c = fresh().run([(IRG().program(job), seed) for seed in (1, 2, 1)])
    same(a, c)
    assert a[0].thinking.ids != b[0].thinking.ids
    assert not torch.allclose(a[0].image.latents, b[0].image.latents, atol=0.1)


def test_rows_are_used_again(fresh: Callable[[], Engine], alone: list[list[Step]]) -> None:
    """One engine, request after request: the results are those of fresh engines, and the cache stops growing."""
    engine = fresh()
    sizes = []
    for _ in range(2):
        for i in (0, 2):
            (got,) = engine.run(programs([i]))
            same(got, alone[i])
        sizes.append(engine.runner.cache.shape)
    assert sizes[0] == sizes[1]


# ------------------------------------------------------------------------------------- contexts


def images_of(engine: Engine, program: Program, seed: int = 0) -> Iterator[tuple[Request, Denoising]]:
    """Run a program; (request, image) after the first step of every image."""
    with engine.session() as session:
        request = session.add(program, seed)
        for event in session:
            if isinstance(event, DenoiseStep) and event.step == 1:
                assert request.denoising is not None
                yield request, request.denoising


def test_branches_are_the_reduced_sequence(fresh: Callable[[], Engine], tiny_loaded: LoadedModel) -> None:
    """Main and both guidance contexts of every image hold what a prefill of their parts holds."""
    engine, seen = fresh(), 0
    job = replace(JOBS[0][1], settings=replace(JOBS[0][1].settings, rounds=3))
    for request, image in images_of(engine, IRG().program(job)):
        op = image.op
        branches = ((image.main, ()), (image.text_uncond, op.drop_text), (image.image_uncond, op.drop_image))
        for context, dropped in branches:
            if context is None:
                continue
            again = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
            wanted = again.cache.new()
            kept = [part for i, part in enumerate(request.parts) if i not in dropped]
            again.extend([(wanted, kept)])
            assert (context.length, context.position) == (wanted.length, wanted.position)
            assert torch.allclose(held(engine.runner, context), held(again, wanted), atol=1e-5)
            seen += 1
    assert seen == 2 + 3 * 3


def test_text_branches_are_copied(fresh: Callable[[], Engine]) -> None:
    """A branch that lacks the last parts is main's prefix, on a row of its own while it draws."""
    engine = fresh()
    for request, image in images_of(engine, IRG().program(JOBS[0][1])):
        branch = image.text_uncond
        assert branch is not None and branch.row != request.main.row
        assert torch.equal(held(engine.runner, branch), held(engine.runner, request.main)[:, : branch.length])
        assert engine.runner.cache.rows_in_use == 2 + (image.image_uncond is not None)
    assert engine.runner.cache.rows_in_use == 0


class Counting(SteadyRunner):
    """Counts tokens that go through the network, by why they do."""

    def __init__(self, loaded: LoadedModel) -> None:
        super().__init__(loaded.model, loaded.autoencoder)
        self.prefilled = self.fed = self.forwards = 0

    def extend(self, items: Sequence[tuple[Context, Sequence[Part]]]) -> list[Any]:
        self.prefilled += sum(len(lay_out(parts, self.grammar)) for _, parts in items)
        return super().extend(items)

    def feed(self, contexts: Sequence[Context], texts_BN: Sequence[Sequence[int]]) -> Tensor:
        self.fed += sum(map(len, texts_BN))
        self.forwards += 1
        return super().feed(contexts, texts_BN)


def test_nothing_goes_through_the_network_twice(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    """Prefilled: what is said and looked at, and for the image branch each later thought. Fed: each thought, once."""
    runner = Counting(tiny_loaded)
    (steps,) = Engine(runner, tiny_tokenizer, speculative=False).run(programs([0]))
    first, *later = (len(step.thinking.ids) + 2 for step in steps)
    said = (3 + 2) + (3 + 2)  # "sys", "red", wrapped
    looked = (2 * 3 + 2) + (2 * 3 + 2)  # 32 x 48 pixels: 2 x 3 latent tokens; 28 x 42 for the ViT: 2 x 3 patches
    assert runner.prefilled == said + 2 * looked + sum(later)
    assert runner.fed == first + sum(later)
    assert len(later) == 2


def test_writers_share_forwards(tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer) -> None:
    """Five texts of 3, 4, ... 7 tokens take as many forwards as the longest: bos, its tokens and eos."""

    def program(n: int) -> Program:
        yield Say("hello")
        return (yield Write(20, forced=(65,) * n))

    runner = Counting(tiny_loaded)
    written = Engine(runner, tiny_tokenizer, speculative=False).run([(program(n), 0) for n in range(3, 8)])
    assert [len(w.ids) for w in written] == [3, 4, 5, 6, 7]
    assert (runner.forwards, runner.fed) == (9, sum(n + 2 for n in range(3, 8)))


def test_a_velocity_changes_no_context(runner: Runner) -> None:
    """Branches that share rows, gaps between rows, and contexts that have nothing to do with it."""
    contexts = [runner.cache.new() for _ in range(6)]
    runner.extend([(c, [Text((i, i + 1) * (i + 1))]) for i, c in enumerate(contexts)])
    shorter = runner.cache.fork(contexts[4], length=3, position=3)
    everyone = [*contexts, shorter]
    before = [held(runner, c) for c in everyone]
    for chosen in ([contexts[0]], [contexts[4], shorter, contexts[0]], [contexts[5], contexts[0], contexts[2]]):
        branches = runner.branches([(c, (2, 2)) for c in chosen])
        velocity = branches.velocity(noise(0, 4, 48).repeat(len(chosen), 1), torch.full((4 * len(chosen),), 0.5))
        for c, got in zip(chosen, velocity.split(4), strict=True):
            alone = runner.branches([(c, (2, 2))]).velocity(noise(0, 4, 48), torch.full((4,), 0.5))
            assert torch.allclose(got, alone, atol=1e-5)
        assert all(torch.equal(held(runner, c), b) for c, b in zip(everyone, before, strict=True))
        assert [c.length for c in contexts] == [2 * (i + 1) + 2 for i in range(6)]


def test_forks_may_be_extended_together(runner: Runner) -> None:
    """Two forks of one context in one forward, as two branches of an image that go on from the same place."""
    parent = runner.cache.new()
    runner.extend([(parent, [Text((1, 2, 3))])])
    forks = [runner.cache.fork(parent) for _ in range(2)]
    runner.extend([(fork, [Text((10 + i,))]) for i, fork in enumerate(forks)])
    for i, fork in enumerate(forks):
        wanted = runner.cache.new()
        runner.extend([(wanted, [Text((1, 2, 3)), Text((10 + i,))])])
        assert torch.allclose(held(runner, fork), held(runner, wanted), atol=1e-5)


def test_both_branches_may_lack_the_same(fresh: Callable[[], Engine]) -> None:
    """Text and image branch continue one remembered branch side by side."""

    def program() -> Program:
        first: Said = yield Say("one")
        yield Say("two")
        draw = Draw(32, 32, replace(SHORT, cfg_img_scale=2.0), first.handles, first.handles)
        yield draw
        yield Say("three")
        return (yield draw)

    engine = fresh()
    (drawn,) = engine.run([(program(), 0)])
    assert isinstance(drawn, Drawn) and engine.runner.cache.rows_in_use == 0


def test_images_in_a_row_are_planned_anew(fresh: Callable[[], Engine]) -> None:
    """An image after another of the same size is drawn on the context as it is then."""
    start = noise(3, 4, 48)

    def program(first: bool) -> Program:
        yield Say("one")
        for _ in range(3 * first):
            yield Draw(32, 32, SHORT, (0,), noise=start)
        yield Say("two")
        return (yield Draw(32, 32, SHORT, (0,), noise=start))

    (again,), (once,) = fresh().run([(program(True), 0)]), fresh().run([(program(False), 0)])
    assert torch.allclose(again.latents, once.latents, atol=1e-5)


# ------------------------------------------------------------------------------------- single operations


def run(engine: Engine, *ops: Operation, seed: int = 0) -> list[Any]:
    """Results of operations one after the other."""

    def program() -> Program:
        results = []
        for op in ops:
            results.append((yield op))
        return results

    (results,) = engine.run([(program(), seed)])
    return results


def test_forced_tokens(fresh: Callable[[], Engine], tiny_tokenizer: TextTokenizer) -> None:
    ids = tiny_tokenizer.encode("so be it")
    said, written, after = run(fresh(), Say("x"), Write(50, forced=ids), Say("y"))
    assert (written.ids, written.text, written.complete) == (ids, "so be it", True)
    assert (said.handles, written.handles, after.handles) == ((0,), (1,), (2,))


@pytest.mark.parametrize(("limit", "complete"), [(3, False), (8, True), (9, True), (0, False)])
def test_a_text_is_cut_at_its_limit(
    fresh: Callable[[], Engine], tiny_tokenizer: TextTokenizer, limit: int, complete: bool
) -> None:
    ids = tiny_tokenizer.encode("so be it")
    (written,) = run(fresh(), Write(limit, forced=ids))
    assert (written.ids, written.complete) == (ids[:limit], complete)


def test_what_is_written_is_as_if_it_had_been_said(fresh: Callable[[], Engine]) -> None:
    """The context after a Write is the one after a Say of the same ids."""
    engine, contexts = fresh(), []

    def program(op: Callable[[tuple[int, ...]], Operation]) -> Program:
        yield Say("before")
        yield op((9, 8, 7))
        yield Say("after")
        yield Write(0)  # parts are computed when they are needed
        contexts.append(
            (held(engine.runner, engine.scheduler.running[0].main), engine.scheduler.running[0].main.position)
        )

    for op in (Say, lambda ids: Write(10, forced=ids), lambda ids: Write(3, forced=ids)):
        engine.run([(program(op), 0)])
    for keys_values, position in contexts[1:]:
        assert position == contexts[0][1] == 8 + 5 + 7 + 2
        assert torch.allclose(keys_values, contexts[0][0], atol=1e-5)


def test_what_is_forgotten_leaves_no_trace(fresh: Callable[[], Engine]) -> None:
    """As if it had never been said: handles, positions, keys, an image's guidance branch, what is written next."""
    shown = Image.new("RGB", (32, 32), (90, 20, 160))

    def program(detour: bool) -> Program:
        prompt: Said = yield Say("red")
        if detour:
            thought = yield Write(6, forced=(65, 66, 67))
            yield Draw(32, 32, SHORT, thought.handles)
            yield Forget(prompt.handles)
        looked: Said = yield Look(shown, eps=torch.zeros(12, 4, 4))
        written = yield Write(7, temperature=0.0)
        drawn = yield Draw(32, 32, SHORT, written.handles, looked.handles, noise=noise(3, 4, 48))
        return prompt, looked, written, drawn

    engine = fresh()
    plain, detour = engine.run([(program(False), 0), (program(True), 1)])
    assert plain[0] == detour[0] and plain[1] == detour[1]
    assert (plain[2].handles, plain[2].ids) == (detour[2].handles, detour[2].ids)
    assert torch.allclose(plain[3].latents, detour[3].latents, atol=1e-5)
    assert engine.runner.cache.rows_in_use == 0


def test_with_the_prompt_as_context_a_reflection_sees_no_plan(fresh: Callable[[], Engine]) -> None:
    """Two plans, one image shown each time: the same reflections; and other ones where the plan is in sight."""
    shown = Image.new("RGB", (48, 32), (200, 120, 10))

    def reflections(context: str) -> list[tuple[int, ...]]:
        texts = []
        for plan in (65,) * 9, (90,) * 9:
            engine = fresh()
            changed = replace(JOBS[0][1].settings, reflection_context=context, reflect_temperature=0.0)
            program = IRG().program(replace(JOBS[0][1], settings=changed))
            program = scripted(program, plan, shown)
            texts.append(engine.run([(program, 0)])[0][1].thinking.ids)
        return texts

    seen, unseen = reflections("all"), reflections("prompt")
    assert unseen[0] == unseen[1] and seen[0] != seen[1]


def scripted(program: Program, plan: tuple[int, ...], shown: Image.Image) -> Program:
    """A program whose first thought is ``plan``, and which is shown one image whatever it drew."""
    value, thoughts = None, 0
    while True:
        try:
            op = program.send(value)
        except StopIteration as stop:
            return stop.value
        if isinstance(op, Write):
            op, thoughts = (replace(op, forced=plan) if not thoughts else op), thoughts + 1
        elif isinstance(op, Look):
            op = replace(op, image=shown, eps=torch.zeros(12, 4, 6))
        value = yield op


def test_greedy_takes_the_likeliest(fresh: Callable[[], Engine]) -> None:
    engine = fresh()
    _, written = run(engine, Say("hello"), Write(5, temperature=0.0))
    runner, context = engine.runner, engine.runner.cache.new()
    runner.extend([(context, [Text(engine.scheduler.prefiller.ids("hello"))])])
    token, ids = runner.grammar.special.bos, []
    for _ in range(5):
        token = int(runner.feed([context], [[token]]).argmax())
        ids.append(token)
    assert written.ids == tuple(ids)


def test_sampling_follows_the_distribution(fresh: Callable[[], Engine]) -> None:
    """First tokens of many requests at temperature 1 have the frequencies that the logits say."""
    engine = fresh()

    def program() -> Program:
        return (yield Write(1, temperature=1.0))

    first = [w.ids[0] if w.ids else 257 for w in engine.run([(program(), seed) for seed in range(300)])]
    context = engine.runner.cache.new()
    probable = engine.runner.feed([context], [[256]]).softmax(-1)[0, 0]
    likely = probable.topk(40)
    wanted, got = float(likely.values.sum()), sum(t in likely.indices.tolist() for t in first) / len(first)
    assert got == pytest.approx(wanted, abs=4 * (wanted * (1 - wanted) / 300) ** 0.5)


def test_pieces_make_the_text(fresh: Callable[[], Engine], tiny_tokenizer: TextTokenizer) -> None:
    """A character of several tokens comes out whole."""
    engine = fresh()
    ids = tiny_tokenizer.encode("naïve 日")

    def program() -> Program:
        return (yield Write(50, forced=ids))

    session = engine.session()
    session.add(program(), seed=0)
    pieces = [event.text for event in session if isinstance(event, TextDelta)]
    assert pieces == ["n", "a", "ï", "v", "e", " ", "日"]


def test_events(fresh: Callable[[], Engine]) -> None:
    """What a listener is told of one request, in order."""
    engine = fresh()
    ((program, seed),) = programs([1])
    session = engine.session()
    session.add(program, seed, index=7)
    events = list(session)
    kinds = [type(event) for event in events]
    assert kinds == [DenoiseStep, DenoiseStep, DenoiseStep, ImageDone, RequestDone]
    assert all(event.request == 7 for event in events)
    steps = [event for event in events if isinstance(event, DenoiseStep)]
    assert [(s.step, s.total) for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert steps[0].time > steps[1].time > steps[2].time == 0.0


def test_own_noise_and_posterior(fresh: Callable[[], Engine]) -> None:
    """Given noises replace the request's random numbers: the seed no longer matters."""
    image = Image.new("RGB", (32, 32), (200, 30, 30))
    ops = (Look(image, eps=noise(0, 12, 4, 4)), Draw(32, 32, SHORT, noise=noise(1, 4, 48)))
    (_, a), (_, b) = run(fresh(), *ops, seed=1), run(fresh(), *ops, seed=2)
    assert torch.equal(a.latents, b.latents)
    other = run(fresh(), replace(ops[0], eps=noise(5, 12, 4, 4)), ops[1])[1]
    assert not torch.allclose(a.latents, other.latents, atol=1e-4)


@pytest.mark.parametrize(("vae", "vit", "tokens"), [(True, True, 6 + 6), (True, False, 6), (False, True, 6)])
def test_ways_to_look(fresh: Callable[[], Engine], vae: bool, vit: bool, tokens: int) -> None:
    """32 x 32 pixels: 2 x 2 latent tokens and 2 x 2 patches, each with start and end."""
    engine, lengths = fresh(), []

    def program() -> Program:
        said: Said = yield Look(Image.new("RGB", (32, 32)), vae=vae, vit=vit)
        yield Write(0)  # two tokens, bos and eos
        main = engine.scheduler.running[0].main
        lengths.append((main.length - 2, len(said.handles), main.position - 2))

    engine.run([(program(), 0)])
    assert lengths == [(tokens, vae + vit, vae + vit)]


# ------------------------------------------------------------------------------------- guidance


def contexts_at(interval: tuple[float, float], shift: float, points: int, text: float = 3.0) -> list[int]:
    """How many contexts every step of an image needs."""
    from irg.engine.flow import time_grid

    s = DrawSettings(points, shift, text, 2.0, interval)
    main, text_uncond, image_uncond = (Context(row) for row in range(3))
    branches = (text_uncond, image_uncond) if text > 1 else ()
    image = Denoising(Draw(32, 32, s), (2, 2), noise(0, 4, 48), time_grid(points, shift).tolist(), main, *branches)
    return [len(replace(image, step=step).contexts) for step in range(image.total)]


def test_interval_edges() -> None:
    """Guided while low < t <= high; ends are compared in float32, in which 0.4 is a grid point of 1, 0.9, 0.8, ..."""
    assert contexts_at((0.5, 0.75), 1.0, 5) == [1, 3, 1, 1]  # t = 1, 0.75, 0.5, 0.25
    assert contexts_at((0.0, 1.0), 1.0, 5) == [3, 3, 3, 3]
    assert contexts_at((0.4, 1.0), 1.0, 11) == [3] * 6 + [1] * 4
    assert contexts_at((0.0, 0.7), 1.0, 11) == [1] * 3 + [3] * 7
    assert contexts_at((0.0, 1.0), 3.0, 5, text=1.0) == [1, 1, 1, 1]


def test_guidance_outside_its_interval_is_none(fresh: Callable[[], Engine]) -> None:
    def program(s: DrawSettings) -> Program:
        said: Said = yield Say("a dog")
        return (yield Draw(32, 32, s, said.handles))

    never = replace(SHORT, cfg_interval=(0.0, 0.0))
    off, none, on = (
        fresh().run([(program(s), 0)])[0].latents for s in (never, replace(SHORT, cfg_text_scale=1.0), SHORT)
    )
    assert torch.allclose(off, none, atol=1e-6)
    assert not torch.allclose(on, none, atol=1e-3)


def test_a_branch_that_lacks_nothing_guides_nowhere(fresh: Callable[[], Engine]) -> None:
    a, b = (
        run(fresh(), Say("a dog"), Draw(32, 32, s))[1].latents
        for s in (replace(SHORT, cfg_img_scale=2.0), replace(SHORT, cfg_text_scale=1.0))
    )
    assert torch.allclose(a, b, atol=1e-4)


# ------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("turns", [0, 1, 4, 9, 14])
def test_close_frees_everything(fresh: Callable[[], Engine], alone: list[list[Step]], turns: int) -> None:
    """Wherever the requests are: writing, drawing, or not begun. The engine can go on afterwards."""
    engine, closed = fresh(), []

    def watched(program: Program) -> Program:
        try:
            return (yield from program)
        except GeneratorExit:
            closed.append(program)
            raise

    session = engine.session()
    for program, seed in programs():
        session.add(watched(program), seed)
    for _ in range(turns):
        engine.step()
    unfinished = session.unfinished if turns else 0  # what has not begun has nothing to close
    session.close()
    assert (engine.runner.cache.rows_in_use, engine.scheduler.running, len(closed)) == (0, [], unfinished)
    (got,) = engine.run(programs([2]))
    same(got, alone[2])


@pytest.mark.parametrize("when", [0, 1])
def test_a_program_that_fails_takes_no_rows_with_it(fresh: Callable[[], Engine], when: int) -> None:
    engine = fresh()

    def program() -> Program:
        if when == 0:
            raise RuntimeError("no")
        yield Say("a")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        engine.run([*programs([1]), (program(), 0)])
    assert engine.runner.cache.rows_in_use == 0


def test_a_program_that_does_nothing(fresh: Callable[[], Engine]) -> None:
    def program() -> Program:
        return 5
        yield

    assert fresh().run([(program(), 0)]) == [5]


def test_seeds_beyond_32_bits_are_seeds_of_their_own(fresh: Callable[[], Engine]) -> None:
    a, b = fresh().run([(IRG().program(JOBS[1][1]), seed) for seed in (1, 1 + 2**32)])
    assert not torch.allclose(a[0].image.latents, b[0].image.latents, atol=0.1)


# ------------------------------------------------------------------------------------- memory


def test_the_cache_allocates_what_the_memory_plan_counts(
    tiny_loaded: LoadedModel, tiny_tokenizer: TextTokenizer
) -> None:
    """A row of each kind a request: main, and two unconditional branches. Five more requests use them again."""
    runner = Runner(tiny_loaded.model, tiny_loaded.autoencoder)
    engine = Engine(runner, tiny_tokenizer)
    for _ in range(2):
        engine.run([(IRG().program(JOBS[0][1]), seed) for seed in range(5)])
        assert [rows for rows, _ in runner.cache.shape] == [5, 5, 5]


def one_image() -> Program:
    said = yield Say((5, 6))
    yield Look(Image.new("RGB", (32, 32)))
    written = yield Write(3, temperature=0.0)
    return (yield Draw(32, 32, replace(SHORT, cfg_img_scale=2.0), said.handles, written.handles))


def test_the_compute_dtype_need_not_be_that_of_the_weights(tiny_loaded: LoadedModel) -> None:
    """As under FSDP's mixed precision: weights are stored in float32, the forward runs in bfloat16."""
    stored, computing = copy.deepcopy(tiny_loaded.model), copy.deepcopy(tiny_loaded.model).to(torch.bfloat16)
    for name in ("forward", "logits", "velocity"):
        setattr(stored, name, getattr(computing, name))
    runner = Runner(stored, tiny_loaded.autoencoder, compute_dtype=torch.bfloat16)
    assert (stored.dtype, runner.cache.dtype) == (torch.float32, torch.bfloat16)

    (drawn,) = Engine(runner).run([(one_image(), 0)])
    assert bool(drawn.latents.isfinite().all())
