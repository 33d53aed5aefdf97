"""Recorded contexts, prefills and sampling runs on the real engine (cases c to h)."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from irg.engine.cache import Context
from irg.engine.engine import Engine
from irg.engine.events import DenoiseStep, RequestFailed
from irg.engine.ops import Program
from irg.engine.request import Denoising
from irg.engine.runner import Runner
from irg.engine.settings import DrawSettings
from irg.sequence.layout import lay_out
from irg.sequence.parts import Part, Patches, Text
from irg.sequence.special import SpecialTokens

from . import fixture
from .fixture import Case, close, equal

# ------------------------------------------------------------------------------------------------------------ contexts


@torch.inference_mode()
def restore(runner: Runner, keys: Tensor, values: Tensor, position: int) -> Context:
    """A context that holds recorded keys and values [layer, token, kv head, head size]."""
    cache, n = runner.cache, keys.shape[1]
    context = cache.new()
    cache.reserve([(context, n)])
    assert context.row is not None
    slots = (cache.slots_of(context.row).start + torch.arange(n)).to(runner.model.device)
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.write(layer, slots, k.to(runner.model.device), v.to(runner.model.device))
    cache.commit(context, n, position)
    return context


def restore_all(runner: Runner, recorded: fixture.Context) -> list[Context]:
    """One context per sample of a recorded batch."""
    return [restore(runner, *recorded.of(i), position) for i, position in enumerate(recorded.positions)]


def held(runner: Runner, context: Context) -> tuple[Tensor, Tensor]:
    """Keys and values of a context as the cache holds them, [layer, token, kv head, head size]."""
    assert context.row is not None
    cache, slots = runner.cache, runner.cache.slots_of(context.row, context.length)
    keys, values = ([slab[slots] for slab in slabs] for slabs in (cache.keys_SKE, cache.values_SKE))
    return torch.stack(keys), torch.stack(values)


def check_contexts(runner: Runner, contexts: Sequence[Context], recorded: fixture.Context, what: str) -> None:
    """Lengths and positions exactly, keys and values closely."""
    equal([context.length for context in contexts], recorded.lens, f"{what}: KV lengths")
    equal([context.position for context in contexts], recorded.positions, f"{what}: rope positions")
    for name, got, wanted in zip(
        ("keys", "values"),
        zip(*(held(runner, context) for context in contexts), strict=True),
        (recorded.keys, recorded.values),
        strict=True,
    ):
        assert wanted is not None
        close(torch.cat(got, dim=1), wanted, f"{what}: {name}")


# --------------------------------------------------------------------------------------------------------------- parts


def texts_of(case: Case, name: str, special: SpecialTokens) -> list[Text]:
    """The texts of a recorded text prefill, one per sample; each was wrapped in bos and eos."""
    pieces = case[f"{name}.in.packed_text_ids"].split(case.integers(f"{name}.in.text_token_lens"))
    wrapped = [piece.tolist() for piece in pieces]
    for bos, *_, eos in wrapped:
        assert (bos, eos) == (special.bos, special.eos)
    return [Text(tuple(ids[1:-1])) for ids in wrapped]


def ids_in(words: str) -> list[tuple[int, ...]]:
    """Token ids that a description lists: ``[bos] 5 77 [eos]`` or ``text [5 77]``."""
    found = re.findall(r"\[bos\]((?: \d+)+) \[eos\]|text \[([\d ]+)\]", words)
    assert found, f"no token ids in {words!r}"
    return [tuple(int(n) for n in (wrapped or bare).split()) for wrapped, bare in found]


def grid_of(case: Case, name: str, side: int) -> tuple[int, int]:
    """Rows and columns of a target image, from its recorded place in the position table."""
    cells = case[name]
    return int(cells.max()) // side + 1, int((cells % side).max()) + 1


def extend(
    runner: Runner, case: Case, name: str, contexts: Sequence[Context], samples: Sequence[Sequence[Part]]
) -> None:
    """Append parts to contexts in one forward, and check it against a recorded prefill: inputs, outputs, contexts."""
    layouts = [lay_out(parts, runner.grammar, c.position) for c, parts in zip(contexts, samples, strict=True)]
    fields = {
        "key_values_lens": [context.length for context in contexts],
        "packed_text_position_ids": [p for layout in layouts for p in layout.positions_T],
        "packed_position_ids": [p for layout in layouts for p in layout.positions_T],
        "packed_seqlens": [len(layout) for layout in layouts],
    }
    checked = [field for field in fields if f"{name}.in.{field}" in case]
    assert checked
    for field in checked:
        equal(fields[field], case[f"{name}.in.{field}"], f"{name}.in.{field}")
    patches = [part.content for parts in samples for part in parts if isinstance(part, Patches)]
    if patches:
        close(torch.cat(patches), case[f"{name}.in.packed_vit_tokens"], f"{name}.in.packed_vit_tokens", atol=1e-6)
    hidden = runner.extend(list(zip(contexts, samples, strict=True)))
    assert hidden is not None
    close(hidden, case[f"{name}.hidden"], f"{name}.hidden")
    if f"{name}.logits" in case:
        with torch.inference_mode():
            close(runner.model.logits(hidden), case[f"{name}.logits"], f"{name}.logits")
    check_contexts(runner, contexts, case.context(name), name)


# ------------------------------------------------------------------------------------------------------------ sampling


def draw_settings(recorded: dict[str, Any]) -> DrawSettings:
    """Recorded settings; what is not listed is the reference's default, which is no guidance."""
    defaults = {"cfg_text_scale": 1.0, "cfg_img_scale": 1.0, "cfg_interval": (0.0, 1.0), "cfg_renorm_type": "global"}
    own = {k: v for k, v in recorded.items() if k in DrawSettings.__dataclass_fields__}
    return DrawSettings.from_dict({**defaults, **own})


def check_steps(
    case: Case, name: str, noise: Tensor, grid: Tensor | Sequence[float], latents: Sequence[Tensor]
) -> None:
    """Hold a sampling run against a recorded one: every x, t and v, and the final latent.

    Args:
        noise: where the run starts.
        grid: its times, both ends included.
        latents: x after every step.
    """
    times, xs = torch.as_tensor(grid, dtype=torch.float32), [noise, *latents]
    close(times[:-1], case[f"{name}.timesteps"], f"{name}.timesteps", atol=1e-7)
    close(torch.stack(xs[:-1]), case[f"{name}.x"], f"{name}.x")
    steps = [(before - after) / (t - s) for before, after, t, s in zip(xs, xs[1:], times, times[1:], strict=False)]
    close(torch.stack(steps), case[f"{name}.v"], f"{name}.v")
    finals = [case[n] for n in case.names if re.fullmatch(rf"{re.escape(name)}\.latent\d*", n)]
    close(latents[-1], torch.cat(finals), f"{name}.latent")


class Watched:
    """A request on an engine of its own, and what can be seen of it: the images it draws and their contexts."""

    def __init__(self, runner: Runner) -> None:
        self.runner, self.engine = runner, Engine(runner)
        self.drawings: list[Denoising] = []
        self.latents: list[list[Tensor]] = []  # of every image, x after every step

    def run(self, program: Program) -> Iterator[Denoising]:
        """Run a program to its end; every image's drawing is handed out after its first step."""
        with self.engine.session() as session:
            request = session.add(program, seed=0)
            for event in session:
                if isinstance(event, RequestFailed):
                    raise event.error
                if isinstance(event, DenoiseStep):
                    if event.step == 1:
                        assert request.denoising is not None, "an image of one step is over before it can be seen"
                        self.drawings.append(request.denoising)
                        self.latents.append([])
                    self.latents[-1].append(event.latents.cpu())
                    if event.step == 1:
                        yield self.drawings[-1]

    @property
    def main(self) -> Context:
        """The request's own context, while it runs."""
        return self.engine.scheduler.running[0].main
