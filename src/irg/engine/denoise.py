"""Denoising images: flow steps of every image in flight, classifier-free guidance, and the autoencoder at the end.

Legend: G latent tokens of all images; N of one; D values per token.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from irg.engine.batching import Batches, fail_on_error, require_finite
from irg.engine.cache import Context
from irg.engine.events import DenoiseStep, ImageDone
from irg.engine.flow import euler_step, gaussian_logprob, stochastic_step, time_grid
from irg.engine.guidance import guide
from irg.engine.ops import Draw, Drawn, Handles, StochasticStep
from irg.engine.prefill import Prefiller
from irg.engine.request import Denoising, Request
from irg.engine.runner import PredictsVelocity, Runner
from irg.engine.settings import DrawSettings
from irg.engine.solvers import HISTORY, Evaluation, solver_step
from irg.engine.step_cache import extrapolated
from irg.model.placement.kv_cache_size import RowKind
from irg.sequence.images import to_image, unpatchify


@dataclass
class _Plan:
    """The velocity prediction of a batch of images: the same from step to step, until a branch comes or goes."""

    key: Any
    branches: PredictsVelocity
    sizes: list[int]  # tokens of every image and branch
    x_GD: Tensor  # of every image and branch, written anew in each step
    guided: list["_Guided"] = field(default_factory=list)


@dataclass
class _Guided:
    """Images that share branches and guidance settings: their places in the batch, and each token's image."""

    members: list[int]
    settings: DrawSettings
    groups_G: Tensor


class Denoiser:
    """Carries out Draw."""

    def __init__(self, runner: Runner, prefiller: Prefiller) -> None:
        self.runner, self.prefiller = runner, prefiller
        self.starts, self.steps, self.vae = Batches(), Batches(), Batches()
        self._plans: list[_Plan] = []

    def reset(self) -> None:
        """Drop what is kept between steps."""
        self._plans = []
        for batches in (self.starts, self.steps, self.vae):
            batches.reset()

    # ---- start

    def start(self, requests: Sequence[Request]) -> None:
        """Noise, time grid and the branches' contexts. The main branch comes first: the others may continue it."""
        for request in requests:
            with fail_on_error(request):
                request.denoising = self._new(request)
        self._prefill(requests)
        drawing = [request for request in requests if request.live]
        for request in drawing:
            with fail_on_error(request):
                d = _denoising(request)
                request.keep_branch(d.op.drop, d.main)
                if d.op.settings.cfg_text_scale > 1:
                    d.text_uncond = self._branch(request, d.op.drop_text, RowKind.TEXT_FREE)
                    if d.op.settings.cfg_img_scale > 1:
                        d.image_uncond = self._branch(request, d.op.drop_image, RowKind.IMAGE_FREE)
        self._prefill(drawing)
        for request in drawing:
            if request.live:
                d = _denoising(request)
                request.keep_branch(d.op.drop_text, d.text_uncond)
                request.keep_branch(d.op.drop_image, d.image_uncond)

    def _prefill(self, requests: Sequence[Request]) -> None:
        """What the branches lack, all in one forward."""
        for batch, _ in self.starts.run([r for r in requests if r.pending], self.prefiller.extend):
            for request in batch:
                request.pending.clear()

    @staticmethod
    def _branch(request: Request, dropped: Handles, kind: RowKind) -> Context:
        context, parts = request.branch(dropped, kind)
        if parts:
            request.pending.append((context, parts))
        return context

    def _new(self, request: Request) -> Denoising:
        op, config = request.op, self.runner.config
        assert isinstance(op, Draw)
        grid = (op.height // config.image_stride, op.width // config.image_stride)
        shape = (grid[0] * grid[1], config.latent_values)
        noise = op.noise if op.noise is not None else torch.randn(shape, generator=request.generator)
        if min(grid) < 1 or noise.shape != shape:
            raise ValueError(
                f"an image of {op.width}x{op.height} pixels has {shape} latent tokens x values, its noise {noise.shape}"
            )
        times = time_grid(op.settings.num_timesteps, op.settings.timestep_shift).tolist()
        main = self._branch(request, op.drop, RowKind.MAIN)
        return Denoising(op, grid, noise.to(self.runner.model.device, torch.float32), times, main)

    # ---- steps

    def step(self, requests: Sequence[Request]) -> None:
        """One step of every image."""
        plans, self._plans = self._plans, []
        known = {plan.key: plan for plan in plans}
        running = [request for request in requests if _denoising(request).runs_network]
        for batch, velocities in self.steps.run(running, lambda rs: self._velocities(rs, known)):
            for request, v_ND in zip(batch, velocities, strict=True):
                with fail_on_error(request):
                    self._note(_denoising(request), v_ND)
                    self._step_one(request, v_ND)
        if len(running) < len(requests):
            self._plans = self._plans or plans
            for request in requests:
                if request.live and request not in running:
                    with fail_on_error(request):
                        d = _denoising(request)
                        self._step_one(request, extrapolated(d.times[d.step], d.known))

    @staticmethod
    def _note(d: Denoising, v_ND: Tensor) -> None:
        """Keep what the network said for the steps that extrapolate it."""
        if not all(d.network_steps):
            before = [] if d.guidance_changes else d.known[-1:]
            d.known = [*before, (d.times[d.step], v_ND)]

    def _step_one(self, request: Request, v_ND: Tensor) -> None:
        d = _denoising(request)
        d.x_ND = self._stepped(request, d, v_ND)
        if d.step == 0:  # of every step it would cost time on a GPU
            require_finite(d.x_ND, "the image")
        d.step += 1
        request.emit(DenoiseStep(request.index, request.turn, d.step, d.total, d.times[d.step], d.x_ND))

    @staticmethod
    def _stepped(request: Request, d: Denoising, v_ND: Tensor) -> Tensor:
        """The image after its coming step."""
        now, after, s = d.times[d.step], d.times[d.step + 1], d.op.settings
        if s.is_stochastic(d.step):
            d.history.clear()
            given = d.op.sde_noise
            if given is None:
                noise_ND = torch.randn(d.x_ND.shape, generator=request.generator)
            else:
                noise_ND = given[d.step - s.sde_window_start]
            noise_ND = noise_ND.to(d.x_ND.device)
            mean_ND, std = stochastic_step(d.x_ND, v_ND, now, after, s.sde_type, s.sde_noise_level, d.times[1])
            x_after_ND = mean_ND + std * noise_ND
            logprob = gaussian_logprob(std * noise_ND, torch.zeros_like(noise_ND), std)
            d.stochastic.append(StochasticStep(now, after, d.x_ND, x_after_ND, logprob))
            return x_after_ND
        if s.solver == "euler":
            return euler_step(d.x_ND, v_ND, now, after)
        if d.guidance_changes:
            d.history.clear()
        evaluation = Evaluation(now, d.x_ND, v_ND, d.x_ND - now * v_ND)
        x_after_ND, x_ND = solver_step(s.solver, evaluation, after, d.history)
        d.history = [*d.history, replace(evaluation, x_ND=x_ND)][-HISTORY:]
        return x_after_ND

    def _velocities(self, requests: Sequence[Request], known: dict[Any, _Plan]) -> list[Tensor]:
        """Guided velocity of every image: one forward for all images and branches."""
        images = [_denoising(request) for request in requests]
        contexts = [d.contexts for d in images]
        plan = self._plan(images, contexts, known)
        torch.cat([d.x_ND for d, branches in zip(images, contexts, strict=True) for _ in branches], out=plan.x_GD)
        times = [d.times[d.step] for d, branches in zip(images, contexts, strict=True) for _ in branches]
        if len(set(times)) == 1:  # in step with each other
            times_G = torch.tensor(times[:1])
        else:
            times_G = torch.repeat_interleave(torch.tensor(times), torch.tensor(plan.sizes)).to(plan.x_GD.device)
        pieces = iter(plan.branches.velocity(plan.x_GD, times_G).split(plan.sizes))
        raw = [[next(pieces) for _ in branches] for branches in contexts]
        out = [pieces[0] for pieces in raw]
        for group in plan.guided:
            self._guide(group, raw, out)
        self._plans.append(plan)
        return out

    def _plan(self, images: list[Denoising], contexts: list[list[Context]], known: dict[Any, _Plan]) -> _Plan:
        members = tuple((d, len(branches)) for d, branches in zip(images, contexts, strict=True))
        if (plan := known.get((self.runner.cache.shape, members))) is not None:
            return plan
        blocks = [(c, d.grid) for d, branches in zip(images, contexts, strict=True) for c in branches]
        times = [time for d in images for time in d.times[:-1]]
        branches = self.runner.branches(blocks, times)  # may grow the cache: its shape is part of the key
        sizes = [len(d.x_ND) for d, count in members for _ in range(count)]
        x_GD = images[0].x_ND.new_empty(sum(sizes), images[0].x_ND.shape[1])
        return _Plan((self.runner.cache.shape, members), branches, sizes, x_GD, self._groups(images, contexts))

    def _groups(self, images: list[Denoising], contexts: list[list[Context]]) -> list[_Guided]:
        """The guided images by number of branches and settings."""
        groups: dict[Any, list[int]] = {}
        for i, (d, branches) in enumerate(zip(images, contexts, strict=True)):
            if len(branches) > 1:
                s = d.op.settings
                rule = (s.cfg_text_scale, s.cfg_img_scale, s.cfg_renorm_type, s.cfg_renorm_min)
                groups.setdefault((len(branches), rule), []).append(i)
        guided = []
        for members in groups.values():
            numbers = torch.arange(len(members))
            groups_G = torch.repeat_interleave(numbers, torch.tensor([len(images[i].x_ND) for i in members]))
            settings = images[members[0]].op.settings
            guided.append(_Guided(members, settings, groups_G.to(self.runner.model.device)))
        return guided

    @staticmethod
    def _guide(group: _Guided, raw: list[list[Tensor]], out: list[Tensor]) -> None:
        """Guidance of all images of a group at once."""
        members, s = group.members, group.settings
        branches = [torch.cat(pieces) for pieces in zip(*(raw[i] for i in members), strict=True)]
        guided_GD = guide(
            branches[0],
            branches[1],
            branches[2] if len(branches) > 2 else None,
            s.cfg_text_scale,
            s.cfg_img_scale,
            s.cfg_renorm_type,
            s.cfg_renorm_min,
            group.groups_G,
        )
        for i, piece in zip(members, guided_GD.split([len(raw[i][0]) for i in members]), strict=True):
            out[i] = piece

    # ---- the autoencoder

    def finish(self, requests: Sequence[Request]) -> None:
        """Decode finished latents, images of one size together."""
        by_grid: dict[tuple[int, int], list[Request]] = {}
        for request in requests:
            by_grid.setdefault(_denoising(request).grid, []).append(request)
        for members in by_grid.values():
            for batch, (latents, pixels_B3HW) in self.vae.run(members, self._decode_latents):
                for request, latent, pixels_3HW in zip(batch, latents, pixels_B3HW, strict=True):
                    with fail_on_error(request):
                        self._finish_one(request, latent, pixels_3HW)

    def _decode_latents(self, batch: list[Request]) -> tuple[list[Tensor], Tensor]:
        patch = self.runner.config.latent_patch_size
        latents = [unpatchify(d.x_ND, d.grid, patch) for d in map(_denoising, batch)]
        return latents, self.runner.decode_latents(torch.stack(latents))

    @staticmethod
    def _finish_one(request: Request, latent: Tensor, pixels_3HW: Tensor) -> None:
        require_finite(pixels_3HW, "the image")
        image = to_image(pixels_3HW, rounded=_denoising(request).op.rounded)
        d = _denoising(request)
        drawn = Drawn(image, latent, time.perf_counter() - d.started, tuple(d.stochastic))
        request.end_denoising()
        request.emit(ImageDone(request.index, request.turn, image, drawn.seconds, latent))
        request.turn += 1
        request.advance(drawn)


def _denoising(request: Request) -> Denoising:
    """The image that a request is denoising."""
    assert request.denoising is not None
    return request.denoising
