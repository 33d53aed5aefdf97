"""The training loop: pack, noise, score, step, average, log, checkpoint, resume.

State is small and plain: weights, average, optimiser moments and the step number; everything random is drawn from
generators seeded with (seed, step). A resumed run is bit-identical to an uninterrupted one on the same machine.
"""

import json
import math
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from irg.learning.checkpoints import latest, load_state, prune, save_state
from irg.learning.data import TrajectoryData
from irg.learning.objective import Losses, flow_targets, losses, total
from irg.learning.optim import build_optimizers, rate, update_average
from irg.learning.packing import Pack, Packer
from irg.learning.recipe import Dropout, Mixture, TrainRecipe
from irg.model.checkpoint import LoadedModel, load_model, save_model
from irg.model.profile import Profile, read_profile
from irg.model.tokenizer import TextTokenizer
from irg.model.unified import UnifiedModel

PARTS = ("vit_model", "connector", "und", "gen", "embed_tokens")


def freeze(model: UnifiedModel, parts: tuple[str, ...]) -> None:
    """Take parts out of training by name: a module's name, or ``und`` / ``gen`` for an expert's layers.

    Raises:
        ValueError: an unknown part.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"frozen: unknown part {part!r}; the parts are {', '.join(PARTS)}")
        for name, parameter in model.named_parameters():
            expert = ("gen" if "moe_gen" in name else "und") if ".layers." in name and "vit" not in name else ""
            if part == expert or part in name.split("."):
                parameter.requires_grad_(False)


@contextmanager
def unbroken() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: what is saved then is whole."""
    if threading.current_thread() is not threading.main_thread():  # others get no signals
        yield
        return
    asked: list[int] = []
    usual = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if asked:
        raise KeyboardInterrupt


class Trainer:
    """One stage of training."""

    def __init__(self, recipe: TrainRecipe, quiet: bool = False) -> None:
        self.recipe, self.quiet = recipe, quiet
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        folder = Path(recipe.model)
        self.loaded: LoadedModel = load_model(folder, dtype=torch.float32, device=recipe.device)
        self.config, self.model = self.loaded.config, self.loaded.model.train()
        self.tokenizer = TextTokenizer.from_file(folder / "tokenizer.json")
        self.profile = read_profile(folder) or Profile(name=folder.name)
        freeze(self.model, recipe.frozen)
        self.out = Path(recipe.out)
        self.data = TrajectoryData(
            recipe.data,
            self.tokenizer,
            self.config,
            self.profile,
            self.loaded.autoencoder,
            Path(recipe.cache) if recipe.cache else self.out / "cache",
            quiet,
        )
        self.held_out = self.data.hold_out(recipe.validation_rows).tolist() if recipe.validate_every else []
        self.packer = self._packer(recipe.mixture, recipe.dropout, recipe.seed, recipe.tokens_per_pack)
        self.optimizers = build_optimizers(self.model, recipe.optimizer)
        self.named_weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.weights = list(self.named_weights.values())
        self.average = [p.detach().clone() for p in self.weights]
        self.step = 0

    def _packer(self, mixture: Mixture, dropout: Dropout, seed: int, budget: int) -> Packer:
        r = self.recipe
        return Packer(
            self.data, self.config.grammar, mixture, dropout, seed, budget, r.max_tokens_per_sample, r.noise_copies
        )

    @property
    def end(self) -> int:
        """The step after which the run is over."""
        return self.recipe.stop_after or self.recipe.steps

    # ---- one step

    def score(self, pack: Pack, generator: torch.Generator) -> Losses:
        """Noise a pack and score it."""
        return self._noised_and_scored(pack, generator, self.recipe.timestep_shift)

    def _noised_and_scored(self, pack: Pack, generator: torch.Generator, shift: float) -> Losses:
        velocity = None
        if pack.clean_GD is not None:
            noise = torch.randn(pack.clean_GD.shape, generator=generator)
            flow = flow_targets(pack.clean_GD, noise, pack.normal_G, shift)
            pack.batch.latents_GD, pack.batch.times_G, velocity = flow.noisy_GD, flow.times_G, flow.velocity_GD
        if self.recipe.device != "cpu":
            pack, velocity = pack.to(self.recipe.device), None if velocity is None else velocity.to(self.recipe.device)
        return losses(
            self.model, pack.batch, pack.attend, velocity, pack.loss_rows_L, pack.labels_L, pack.target_rows_M
        )

    def train_step(self) -> dict[str, float]:
        """One optimiser step; returns what to log."""
        recipe, step = self.recipe, self.step
        pack = self.packer.pack(step)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        scored = self.score(pack, generator)
        loss, ce, mse = total(scored, recipe.ce_weight, recipe.mse_weight)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.weights, recipe.optimizer.clip)
        factor = rate(step, recipe.steps, recipe.optimizer)
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["base_lr"] * factor
                optimizer.step()
            update_average(self.average, [p.detach() for p in self.weights], self._decay())
        for p in self.weights:
            p.grad = None
        self.step += 1
        return {
            "loss": loss.item(),
            "ce": ce.item(),
            "mse": mse.item(),
            "grad_norm": float(norm),
            "lr_factor": factor,
            "tokens": pack.tokens,
            "skipped": float(not math.isfinite(norm)),
            **{f"n/{mode}": n for mode, n in pack.modes.items()},
        }

    def _decay(self) -> float:
        """The average warms up, so that early checkpoints are not the random start."""
        return min(self.recipe.ema, (1 + self.step) / (10 + self.step))

    # ---- validation: does the picture listen to its text?

    @torch.no_grad()
    def validate(self, level: float = 0.9) -> dict[str, float]:
        """Velocity error of held-out pictures at one high noise level: with the thinking, without it, and with another
        row's thinking.

        A falling loss hides a condition that is ignored; the gap between these three does not.
        """
        result: dict[str, float] = {}
        normal = math.log(level / (1 - level))
        for name in ("with", "without", "shuffled"):
            pack = probe_pack(self.data, self.config.grammar, self.held_out, name, normal)
            scored = self._noised_and_scored(pack, torch.Generator().manual_seed(99), shift=1.0)
            result[f"val/mse@{level}/{name}"] = scored.mse_MD.mean().item()
        return result

    # ---- the loop

    def fit(self) -> Path:
        """Train to the end, resuming from the newest checkpoint in ``out``; returns the exported model folder."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._check_or_write_recipe()
        self.resume()
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with (
            Progress(*columns, disable=self.quiet) as progress,
            (self.out / "log.jsonl").open("a", encoding="utf-8") as log,
        ):
            task = progress.add_task("training", total=self.end, completed=self.step)
            try:
                self._loop(progress, task, log)
            except KeyboardInterrupt:
                self.save()
                raise
        self.save()
        return self.export()

    def _loop(self, progress: Progress, task: Any, log: Any) -> None:
        recipe = self.recipe
        started, tokens = time.perf_counter(), 0.0
        sums: dict[str, list[float]] = {}
        while self.step < self.end:
            with unbroken():
                record = self.train_step()
            tokens += record["tokens"]
            for key, value in record.items():
                sums.setdefault(key, []).append(value)
            if self.step % recipe.log_every == 0 or self.step == self.end:
                line: dict[str, float] = {"step": self.step} | {k: sum(v) / len(v) for k, v in sums.items()}
                line["tokens_per_second"] = tokens / (time.perf_counter() - started)
                if recipe.validate_every and self.step % recipe.validate_every == 0:
                    line |= self.validate()
                log.write(json.dumps({k: round(v, 6) for k, v in line.items()}) + "\n")
                log.flush()
                progress.update(task, description=f"loss {line['loss']:.3f} ce {line['ce']:.3f} mse {line['mse']:.3f}")
                started, tokens, sums = time.perf_counter(), 0.0, {}
            if self.step % recipe.save_every == 0:
                self.save()
            progress.update(task, completed=self.step)

    # ---- state

    def _check_or_write_recipe(self) -> None:
        """A folder belongs to one recipe; only where it ends and how often it reports may change on resuming."""
        free = {"cache", "steps", "stop_after", "log_every", "save_every", "keep", "validate_every", "threads"}
        path = self.out / "recipe.json"
        mine = json.loads(json.dumps(asdict(self.recipe)))
        if path.is_file():
            theirs = json.loads(path.read_text(encoding="utf-8"))
            changed = [k for k in mine if k not in free and mine[k] != theirs.get(k)]
            if changed:
                raise ValueError(
                    f"{self.out} holds a run with another recipe (different: {', '.join(changed)}); "
                    "choose another --out or give the old values"
                )
        path.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, as named tensors."""
        state = {"step": torch.tensor(self.step)}
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            state[f"weight/{name}"], state[f"average/{name}"] = weight.detach(), average
            for optimizer in self.optimizers:
                for key, value in optimizer.state.get(weight, {}).items():
                    state[f"{key}/{name}"] = torch.as_tensor(value)
        return state

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Take over a saved state."""
        self.step = int(state["step"])
        of_weight: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in state.items():
            kind, _, name = key.partition("/")
            of_weight[name][kind] = value
        for (name, weight), average in zip(self.named_weights.items(), self.average, strict=True):
            moments = of_weight[name]
            weight.copy_(moments.pop("weight"))
            average.copy_(moments.pop("average"))
            owner = next(o for o in self.optimizers if any(weight is q for g in o.param_groups for q in g["params"]))
            owner.state[weight].update({kind: value.clone() for kind, value in moments.items()})

    def save(self) -> None:
        """Write a checkpoint (atomic), drop the oldest ones."""
        save_state(self.out, self.step, self.state())
        prune(self.out, self.recipe.keep)

    def resume(self) -> None:
        """Load the newest checkpoint of ``out``, if there is one."""
        if (found := latest(self.out)) is not None:
            self.load(load_state(found))

    @torch.no_grad()
    def export(self) -> Path:
        """Write the averaged weights as a model folder, ``out/model``, that every command takes."""
        folder = self.out / "model"
        current = [p.detach().clone() for p in self.weights]
        for p, average in zip(self.weights, self.average, strict=True):
            p.copy_(average)
        try:
            save_model(folder, self.config, self.model, self.loaded.autoencoder)
            self.tokenizer.tokenizer.save(str(folder / "tokenizer.json"))
            self.profile.save(folder)
        finally:
            for p, weight in zip(self.weights, current, strict=True):
                p.copy_(weight)
        return folder


def probe_pack(data: TrajectoryData, grammar: Any, rows: list[int], thinking: str, normal: float) -> Pack:
    """A validation pack: mode ``initial_full`` with the right thinking, none, or the next row's."""
    from irg.learning.modes import write
    from irg.learning.packing import assemble
    from irg.sequence.layout import lay_out
    from irg.sequence.parts import Target, Text

    samples = [list(write("initial_full", data.trajectory(row))) for row in rows]
    if thinking == "without":
        samples = [[p for p in sample if not (isinstance(p, Text) and p.loss)] for sample in samples]
    elif thinking == "shuffled":
        texts = [next(p for p in sample if isinstance(p, Text) and p.loss) for sample in samples]
        turned = texts[1:] + texts[:1]
        samples = [
            [other if isinstance(p, Text) and p.loss else p for p in sample]
            for sample, other in zip(samples, turned, strict=True)
        ]
    layouts = [lay_out(sample, grammar) for sample in samples]
    parts = [p for sample in samples for p in sample]
    latents = [data.latents(p.content) for p in parts if isinstance(p, Target)]
    return assemble(layouts, parts, [], latents, lambda: normal)


def train(recipe: TrainRecipe, quiet: bool = False) -> Path:
    """Run a recipe to its end and return the exported model folder."""
    return Trainer(recipe, quiet).fit()
