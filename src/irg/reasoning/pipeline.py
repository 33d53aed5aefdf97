"""The public face: load a model, give it prompts, get trajectories.

``docs/architecture.md`` describes a prompt's way through the package.
"""

import logging
import secrets
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch
from PIL import Image

from irg.deprecation import warn
from irg.engine.engine import Engine
from irg.engine.events import RequestDone, RequestFailed
from irg.engine.guidance_parallel import runner_of
from irg.engine.ngram_drafter import MAX_DRAFT_TOKENS
from irg.engine.static_decoding import NOT_WHOLE
from irg.image_files import ImageSource
from irg.model.placement.devices import parse_devices, parse_dtype
from irg.model.placement.loading import load_with_plan
from irg.model.placement.memory_plan import Memory, MemoryPlan
from irg.model.placement.processes import Parallel, join
from irg.model.placement.record import loaded_record
from irg.model.weights.adapter_files import LoraSource, lora_sources
from irg.model.weights.config_files import read_config
from irg.model.weights.profile import Profile, read_profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.critique import Critics
from irg.reasoning.events import CandidateDone, DenoiseStep, Event, Failed, Finished, GenerationError
from irg.reasoning.jobs import Jobs, given_image, several
from irg.reasoning.model_settings import check_question, checked_settings, image_sizes, usual_request
from irg.reasoning.output import IRGOutput
from irg.reasoning.prompts import BAGEL_PROFILE
from irg.reasoning.protocols.base import Protocol, Task, find
from irg.reasoning.protocols.irg import redraw
from irg.reasoning.protocols.known_models import DEFAULT_PROTOCOL
from irg.reasoning.protocols.selection import ProtocolTexts, find_model, select_protocol, usual_settings
from irg.reasoning.requests import Requests
from irg.reasoning.search import Searching
from irg.reasoning.settings import Settings, check_seed, of_later_images, with_options
from irg.results.trajectory import Trajectory

_log = logging.getLogger("irg")
StepCallback = Callable[["IRGPipeline", int, float, dict[str, Any]], Any]


class IRGPipeline:
    """A model ready to reason and draw."""

    def __init__(
        self,
        engine: Engine,
        profile: Profile,
        name: str,
        memory_plan: MemoryPlan | None = None,
        protocol: Protocol | None = None,
        texts: ProtocolTexts | None = None,
        critics: Critics | None = None,
        loaded: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        protocol: the way to reason; default: the paper's.
        texts: the protocol's.
        critics: those that settings may name; default: made when they are needed.
        loaded: what results record of the loaded model (:mod:`irg.model.placement.record`).
        """
        self.engine, self.profile, self.name, self.memory_plan = engine, profile, name, memory_plan
        self.loaded = dict(loaded or {})
        self.config = engine.runner.config
        self.protocol, self.protocol_reason = protocol or find(DEFAULT_PROTOCOL), ""
        self.defaults = usual_settings(self.config, profile, self.protocol, engine.runner.processes is not None)
        self.critics = critics or Critics()
        self.sizes = image_sizes(self.config, self.defaults)
        texts = texts or ProtocolTexts(self.protocol, profile)
        self.jobs = Jobs(name, self.config, self.protocol, texts, self.defaults, self.sizes, self.critics, self.loaded)
        self.requests = Requests(self.jobs, engine)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = "mini",
        device: str | torch.device | Sequence[str | torch.device] | None = None,
        dtype: torch.dtype | str | None = None,
        memory: Memory = "auto",
        weights: str | None = None,
        lora: str | Path | Sequence[LoraSource] = (),
        protocol: str | None = None,
        system_prompt: str | None = None,
        texts: Mapping[str, str] | None = None,
        offline: bool = False,
        say: Callable[[str], None] = _log.info,
        options: Mapping[str, Any] | None = None,
        task: Task = "generate",
        images: Iterable[ImageSource] = (),
        critics: Critics | None = None,
        parallel: Parallel | None = None,
        compile: bool = False,
    ) -> "IRGPipeline":
        """Load a model.

        Args:
            model: the name of a bundled model, a model folder, or a hub model (``owner/name``,
                ``owner/name@REVISION`` or its address).
            device: default: CUDA if there is one, else the CPU. Several (``"cuda:0,cuda:1"``) share the layers.
            dtype: or its name; default: by ``memory``. A dtype with ``memory="auto"`` is taken as it is.
            memory: how to fit the device: ``bf16``, ``int8``, ``int4``, ``fp8``, ``offload`` (layers wait in host
                memory), or ``auto``, the first that fits (float32 before them on the CPU).
            weights: the name of the weights to take where a folder has several: ``ema`` for ``ema.safetensors``.
                Default: a known model's own in its protocol, else the first of ``weights``, ``ema``, ``model``.
            lora: low-rank adapters (:mod:`irg.model.weights.adapter_forms`): paths, ``"PATH:SCALE"`` or (path, scale);
                merged as the weights are loaded, before they are quantized or offloaded.
            protocol: the way to reason (``docs/protocols.md``); default: the model's own.
            system_prompt: takes the place of the protocol's.
            texts: the protocol's texts by name, which are then not read from their official home.
            offline: download neither a model nor a text.
            say: gets a line about what is downloaded, and one about the memory that was chosen and why.
            options: single settings by name as in a call; changed so, the model's own become ``defaults``. They are
                checked against the model's configuration before its weights are loaded.
            task: what the options are for (:meth:`stream`).
            images: given ones, to be checked, too.
            critics: those that the setting ``critic`` may name; default: made when they are needed.
            parallel: what the processes that ``torchrun`` started share out (:mod:`irg.model.placement.processes`).
            compile: write texts and draw by compiled functions, which the first text and image of some length wait for.

        Raises:
            ValueError: there is no such model or protocol, its folder is incomplete or damaged (the message says what),
                it can't draw what the options ask for, a text that they need can't be had, or the model is offloaded
                or on several devices and can't be compiled.
        """
        dtype = parse_dtype(dtype)
        processes = None if parallel is None else join(parallel, device)
        devices, adapters = parse_devices(None if processes else device), lora_sources(lora)
        if compile and (memory == "offload" or len(devices) > 1):
            raise ValueError(NOT_WHOLE)
        folder, weights = find_model(model, weights, protocol, say, offline)
        own_profile = read_profile(folder)
        profile = own_profile or BAGEL_PROFILE
        selected = select_protocol(protocol, str(model), folder, own_profile)
        tokenizer = TextTokenizer.from_folder(folder)
        config = read_config(folder)
        tokenizer.check(config, folder)
        usual = usual_settings(config, profile, selected.protocol, processes is not None)
        defaults = checked_settings(config, usual, options or {}, profile.efforts, say)
        if defaults.mode == "irg":  # a loop that can't be is told before the weights are loaded
            selected.protocol.check(defaults, usual, "generate")
            check_question(defaults, profile)
        protocol_texts = ProtocolTexts(selected.protocol, profile, system_prompt, texts, say, offline)
        if options is not None:
            selected.protocol.check(defaults, usual, task)
        for image in images:
            given_image(image, selected.protocol, config)
        protocol_texts.read(task, defaults.mode)
        if selected.protocol.name != DEFAULT_PROTOCOL:
            say(f"Protocol: {selected.protocol.name}, as {selected.reason}")
        shape = usual_request(usual)
        loaded, plan = load_with_plan(folder, memory, devices, dtype, weights, shape, adapters, processes)
        say(f"Memory: {plan.reason}")
        runner = runner_of(loaded.model, loaded.autoencoder, processes)
        engine = Engine(runner, tokenizer, profile.draft_texts)
        runner.accelerate(MAX_DRAFT_TOKENS + 1, compile)
        record = loaded_record(folder, loaded, plan, adapters, devices, processes)
        pipe = cls(engine, profile, str(model), plan, selected.protocol, protocol_texts, critics, record)
        pipe.defaults, pipe.protocol_reason = defaults, selected.reason
        return pipe

    def with_options(self, settings: Settings, options: Mapping[str, Any]) -> Settings:
        """:func:`irg.reasoning.settings.with_options` with this model's sizes and presets."""
        return with_options(settings, options, self.sizes, self.profile.efforts)

    def max_concurrent_requests(self, most: int = 8) -> int:
        """How many requests of the usual size to run at a time: ``most``, or as many as memory has room for."""
        return most if self.memory_plan is None else min(most, self.memory_plan.max_concurrent_requests)

    def together(self, most: int) -> int:
        """The old name of :meth:`max_concurrent_requests`."""
        warn("IRGPipeline.together", "IRGPipeline.max_concurrent_requests")
        return self.max_concurrent_requests(most)

    @property
    def choice(self) -> MemoryPlan | None:
        """The old name of ``memory_plan``."""
        warn("IRGPipeline.choice", "IRGPipeline.memory_plan")
        return self.memory_plan

    # ---- running

    @overload
    def __call__(self, prompt: str, **options: Any) -> IRGOutput: ...
    @overload
    def __call__(self, prompt: Sequence[str], **options: Any) -> list[IRGOutput]: ...

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] | None = None,
        settings: Settings | None = None,
        callback_on_step_end: StepCallback | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> IRGOutput | list[IRGOutput]:
        """Run one prompt or several at once.

        Args:
            seed: of the request's random numbers, one for all prompts or one each; None draws new ones. A
                prompt and a seed give the same image up to rounding, whatever else runs beside it
                (``docs/engine.md``).
            batch_size: requests in flight at a time; None: 8, or as many as memory has room for.
            settings: all settings at once; default: the model's own (``pipe.defaults``).
            callback_on_step_end: called as ``callback(pipe, step, t, info)`` after every update of an image; ``info``
                has ``request``, ``turn``, ``total`` and ``latents`` [tokens, values].
            options: single settings by name, over ``settings``: those of :class:`Settings` (``mode``, ``rounds``,
                ``height``, ``width``, ``temperature``, ...), ``size`` for width and height (``"512x384"``, ``"16:9"``,
                ``"wide"``: :mod:`irg.reasoning.sizes`), ``effort`` (:mod:`irg.reasoning.effort`), those of
                ``DrawSettings`` for the first image (``num_timesteps``, ...), with ``improve_`` before for later ones.

        Raises:
            ValueError: a prompt, seed, setting or the batch size is not usable.
            GenerationError: a request failed while it ran; it is named. The other prompts of this call are dropped
                (:meth:`stream` goes on with them).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        chosen = self.with_options(settings or self.defaults, options)
        seeds = self._seeds(seed, len(prompts))
        outputs = self._outputs(self.stream(prompts, seeds, chosen, batch_size), callback_on_step_end)
        return outputs[0] if isinstance(prompt, str) else outputs

    def improve(
        self,
        image: ImageSource,
        prompt: str,
        *,
        seed: int | None = None,
        settings: Settings | None = None,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> IRGOutput:
        """Look at an image, reflect, and draw it better, ``rounds`` times at most. It is the trajectory's turn 0.

        Args:
            image: a path, the bytes of a file, or a Pillow image.
            prompt: what it should show.
            options: as in a call; the size is the image's, brought to one that the network takes, if none is set.
                Drawing settings need no ``improve_`` before them.

        Raises:
            ValueError: the image, the prompt, the seed or a setting is not usable.
            GenerationError: the request failed while it ran.
        """
        chosen = self._about_images(settings, options)
        events = self.stream([prompt], self._seeds(seed, 1), chosen, task="improve", images=[[image]])
        return self._outputs(events, callback_on_step_end)[0]

    def edit(
        self,
        images: ImageSource | Sequence[ImageSource],
        instruction: str,
        *,
        think: bool = False,
        seed: int | None = None,
        settings: Settings | None = None,
        callback_on_step_end: StepCallback | None = None,
        **options: Any,
    ) -> IRGOutput:
        """Edit an image, or make one of several, as an instruction says. The trajectory's first turns are the images.

        Args:
            images: paths, bytes of files, or Pillow images; the model sees them together, in order.
            think: let the model think before it draws.
            options: see :meth:`improve`; the size is the last image's.

        Raises:
            ValueError: an image, the instruction, the seed or a setting is not usable.
            GenerationError: the request failed while it ran.
        """
        chosen = self._about_images(settings, options | {"mode": "think" if think else "direct"})
        events = self.stream([instruction], self._seeds(seed, 1), chosen, task="edit", images=[several(images)])
        return self._outputs(events, callback_on_step_end)[0]

    def ask(
        self,
        images: ImageSource | Sequence[ImageSource],
        question: str,
        *,
        think: bool = False,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        settings: Settings | None = None,
    ) -> str:
        """The model's answer to a question about images; see :meth:`edit`.

        Raises:
            ValueError: an image, the question, the seed or a setting is not usable.
            GenerationError: the request failed while it ran.
        """
        given = {"mode": "think" if think else "direct", "max_think_tokens": max_tokens, "temperature": temperature}
        options = {name: value for name, value in given.items() if value is not None}
        chosen = self._about_images(settings, options)
        events = self.stream([question], self._seeds(seed, 1), chosen, task="ask", images=[several(images)])
        return self._outputs(events, None)[0].trajectory.answer or ""

    def _about_images(self, settings: Settings | None, options: Mapping[str, Any]) -> Settings:
        """The settings of a request about given images."""
        return self.with_options(settings or self.defaults.sized_by_image(), of_later_images(options))

    def _outputs(
        self, stream: Generator[Event, None, None], callback_on_step_end: StepCallback | None
    ) -> list[IRGOutput]:
        """Run a stream to its end; the first failure is raised."""
        done: dict[int, Trajectory] = {}
        with closing(stream) as events:
            for event in events:
                if isinstance(event, Finished):
                    done[event.request] = event.trajectory
                elif isinstance(event, Failed):
                    raise event.error
                elif isinstance(event, DenoiseStep) and callback_on_step_end is not None:
                    info = {"request": event.request, "turn": event.turn, "total": event.total}
                    callback_on_step_end(self, event.step, event.time, info | {"latents": event.latents})
        return [IRGOutput(done[i]) for i in range(len(done))]

    def stream(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        settings: Settings | None = None,
        batch_size: int | None = None,
        *,
        task: Task = "generate",
        images: Sequence[Sequence[ImageSource]] = (),
    ) -> Generator[Event, None, None]:
        """Run prompts and yield what happens as it happens; at most ``batch_size`` (None: 8, or as many as memory has
        room for) run at a time.

        Any number of streams may be open at once, in any threads: each has its own requests and events. Closing one
        drops its own requests only.

        Args:
            task: ``generate``; ``improve``: the prompt says what the given image should show; ``edit``: the prompt is
                an instruction for the given images; ``ask``: it is a question about them.
            images: for every task but ``generate``, the given images of each prompt: paths, bytes of files, or Pillow
                images. Without a size in ``settings`` images are drawn in the size of the last one given.

        Raises:
            ValueError: a prompt, image, seed, setting or the batch size is not usable; raised before anything runs.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        settings = settings or (self.defaults if task == "generate" else self.defaults.sized_by_image())
        given = list(images) or [()] * len(prompts)
        if len(given) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need images for each of them, got {len(given)}")
        seeds = self._seeds(None if seeds is None else list(seeds), len(prompts))
        if self.engine.runner.processes is not None:
            settings.check_same_everywhere()
        requests = zip(prompts, seeds, given, strict=True)
        jobs = [self.jobs.make(prompt, settings, seed, task, own) for prompt, seed, own in requests]
        return self._run([self.requests.searching(job) for job in jobs], self._limit(batch_size))

    def _run(self, searches: Sequence[Searching], limit: int) -> Generator[Event, None, None]:
        """Run the candidates of all requests; a request is finished when its candidates have scores."""
        places = [(i, k) for i, searching in enumerate(searches) for k in range(len(searching.attempts))]
        with self.engine.session(limit) as session:
            for number, (i, k) in enumerate(places):
                self.requests.begin(session, searches[i], k, number)
            open_ = dict(enumerate(searches))
            for event in session:
                i, k = places[event.request]
                if isinstance(event, RequestDone | RequestFailed):
                    drawn = self.requests.ended(searches[i], k, event)
                    if drawn is not None and len(searches[i].attempts) > 1:
                        yield CandidateDone(i, k, drawn)
                elif k == 0:  # the other candidates are drawn unseen
                    yield replace(event, request=i)
                for i in [i for i, searching in open_.items() if searching.ready]:
                    yield self.requests.result(i, open_.pop(i))
        for i, searching in open_.items():
            yield self.requests.result(i, searching)

    def redraw(
        self,
        trajectories: Sequence[Trajectory],
        reflections: Sequence[str],
        settings: Settings | None = None,
        batch_size: int | None = None,
    ) -> list[Image.Image]:
        """Second images drawn from the first turns of ``trajectories`` and from reflections of one's own.

        Shows how much a reflection's text matters: give it another prompt's.

        Raises:
            ValueError: there is not one reflection for each trajectory, or one has no thinking and image in its first
                turn, or the batch size is not usable.
            GenerationError: a request failed while it ran; it is named.
        """
        settings, limit = settings or self.defaults, self._limit(batch_size)
        if len(reflections) != len(trajectories):
            raise ValueError(f"{len(trajectories)} trajectories need as many reflections, got {len(reflections)}")
        programs = []
        for i, (trajectory, reflection) in enumerate(zip(trajectories, reflections, strict=True)):
            first = trajectory.turns[0]
            if first.image is None or first.thinking is None:
                raise ValueError(f"trajectory {i} ({trajectory.prompt!r}) has no thinking and image in its first turn")
            job = self.jobs.make(trajectory.prompt, settings, trajectory.seed)
            programs.append(redraw(job, first.thinking, first.image, reflection))
        images: dict[int, Image.Image] = {}
        with self.engine.session(limit) as session:
            for program, trajectory in zip(programs, trajectories, strict=True):
                session.add(program, trajectory.seed)
            for event in session:
                if isinstance(event, RequestFailed):
                    raise GenerationError(event.request, trajectories[event.request].prompt, event.error)
                if isinstance(event, RequestDone):
                    images[event.request] = event.value[0].image.image
        return [images[i] for i in range(len(trajectories))]

    def retell(
        self,
        trajectories: Sequence[Trajectory],
        reflections: Sequence[str],
        settings: Settings | None = None,
        batch_size: int = 8,
    ) -> list[Image.Image]:
        """The old name of :meth:`redraw`."""
        warn("IRGPipeline.retell", "IRGPipeline.redraw")
        return self.redraw(trajectories, reflections, settings, batch_size)

    # ---- checks and results

    def _limit(self, batch_size: int | None) -> int:
        if batch_size is None:
            return self.max_concurrent_requests()
        if type(batch_size) is not int or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, or None, got {batch_size!r}")
        return batch_size

    def _seeds(self, seed: int | Sequence[int] | None, count: int) -> list[int]:
        if seed is None:
            drawn, processes = [secrets.randbelow(2**32) for _ in range(count)], self.engine.runner.processes
            return drawn if processes is None else processes.agreed(drawn)
        seeds = [seed] * count if isinstance(seed, int) else list(seed)
        if len(seeds) != count:
            raise ValueError(f"{count} prompts need as many seeds (or one for all), got {len(seeds)}")
        return [check_seed(s) for s in seeds]
