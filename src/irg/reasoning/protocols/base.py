"""What a protocol is: a model's way to reason, as programs over Say, Write, Draw, Look, Forget and Wait.

A protocol is one class in one file, registered as an entry point of the group ``irg.protocols``;
``docs/protocols.md`` shows one of one's own.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from PIL.Image import Image

from irg import registry
from irg.critics import Critic, Review, TextCritic
from irg.critics.options import SELF, SELF_CHECK
from irg.engine.events import TextKind
from irg.engine.ops import Draw, Drawn, Forget, Handles, Look, Operation, Program, Said, Say, Write, Written
from irg.model.network.config import ModelConfig
from irg.reasoning.critique import NO_CRITIQUE, OUT_OF_BUDGET, Critique, ask_critic
from irg.reasoning.protocols.official_texts import OfficialText
from irg.reasoning.settings import Fallback, Mode, Settings
from irg.sequence.images import ResizeRule

Task = Literal["generate", "improve", "edit", "ask"]


@dataclass(frozen=True)
class Job:
    """What a program needs to know of a request.

    Attributes:
        system: the system prompt; may be empty.
        height, width: of images that are drawn, in pixels.
        task: draw from a prompt, improve a given image for a prompt, edit given images as the prompt says, or answer
            the prompt's question about given images.
        images: the given ones.
        texts: the protocol's official texts by name.
        seed: the request's.
        vae_resize, vit_resize: how images that are looked at are resized; None: the model's own rules.
        posterior: how the autoencoder reads an image.
        rounded: images that are drawn are rounded to 8 bits; default: truncated.
        critic: who reflects in the model's place; None: nobody.
        critic_fallback: what is done when the critic fails.
        how_to_check: what the model is asked for a critic that ``asks``.
        may_begin: whether the budget of a search lets a turn begin.
    """

    prompt: str
    system: str
    settings: Settings
    height: int
    width: int
    task: Task = "generate"
    images: tuple[Image, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0
    vae_resize: ResizeRule | None = None
    vit_resize: ResizeRule | None = None
    posterior: Literal["sample", "mean"] = "sample"
    rounded: bool = False
    critic: Critic | None = None
    critic_fallback: Fallback = "self"
    how_to_check: str = ""
    may_begin: Callable[[int], bool] = lambda turn: True

    def write(self, turn: int = 0) -> Write:
        """The thinking of turn 0, a reflection of a later turn, the answer to a question."""
        s = self.settings
        kind: TextKind = "answer" if self.task == "ask" else "reflection" if turn else "thinking"
        temperature, tokens = s.temperature, s.max_think_tokens
        if turn:
            temperature = temperature if s.reflect_temperature is None else s.reflect_temperature
            tokens = tokens if s.max_reflect_tokens is None else s.max_reflect_tokens
        return Write(tokens, temperature, top_k=s.top_k, top_p=s.top_p, kind=kind)

    def think(self, prompt: Handles) -> Generator[Operation, Any, tuple[Written, dict[str, Any]]]:
        """A part of a program that writes the thinking after ``prompt``, until a critic that reads accepts it or the
        tries are up. Returns the last one, with the seconds of all, and details: how many there were, and what the
        model said of the last one, if it was asked."""
        first = self.write()
        written: Written = yield first
        for number in range(1, self.settings.thinking_tries):
            if not isinstance(self.critic, TextCritic):
                return written, {"tries": number}
            text, details = written.text, dict[str, Any](tries=number)
            if self.critic.asks:
                answer = yield from self.check()
                yield Forget(written.handles)
                text, details["check"] = answer.text, answer.text
                written = replace(written, seconds=written.seconds + answer.seconds)
            if self.critic.accepts(self.prompt, text):
                return written, details
            yield Forget(prompt)
            before = written.seconds
            written = yield replace(first, temperature=max(1.0, first.temperature))
            written = replace(written, seconds=before + written.seconds)
        tries = self.settings.thinking_tries
        return written, {"tries": tries} if tries > 1 else {}

    def check(self) -> Generator[Operation, Any, Written]:
        """A part of a program that asks the model whether the text that stands last is what the prompt asks for. The
        question and its answer stay in the sequence."""
        yield Say(self.how_to_check)
        answer: Written = yield replace(self.write(1), kind="check")
        return answer

    def look(self, image: Image, vae: bool = True, vit: bool = True) -> Look:
        """Show an image to the model."""
        return Look(image, vae, vit, None, self.vae_resize, self.vit_resize, self.posterior)

    def sized_by(self, image: Image) -> "Job":
        """The same job, drawing in the size that an image is brought to for the autoencoder."""
        if self.vae_resize is None:
            return self
        width, height = self.vae_resize.size(*image.size)
        return replace(self, height=height, width=width)

    def draw(self, turn: int, drop_text: Handles, drop_image: Handles = (), drop: Handles = ()) -> Draw:
        """The image of a turn; the unconditional branches, and the image itself, leave out these parts."""
        settings = self.settings.draw(turn)
        return Draw(self.height, self.width, settings, drop_text, drop_image, drop=drop, rounded=self.rounded)

    def consult(
        self, turn: int, image: Image, thinking: str | None = None, reflection: str | None = None
    ) -> Generator[Operation, Any, Critique]:
        """A part of a program that begins a turn: whether the budget allows it, what the critic says of the image.

        Where it has a verdict, its words take the place of what the model would write; where it ``stop``s, the program
        ends with :meth:`Step.of`; else the model reflects as ever.
        """
        if not self.may_begin(turn):
            return OUT_OF_BUDGET
        review = Review(self.prompt, image, thinking, turn, reflection)
        return (yield from ask_critic(self.critic, review, self.critic_fallback))


@dataclass(frozen=True)
class Step:
    """A turn as it happened.

    Attributes:
        thinking: the text that led to the image: written by the model, or made of a critic's words; None where there is
            none.
        image: None if the model stopped here.
        details: more of what was written, read or decided, as plain JSON values.
        stop: why the request ended here: ``done``, ``malformed: ...``; empty where it did not, or the rounds were up.
        critique: what a critic said of the image before.
        reflection: what was said of the image before, where that is not ``thinking`` itself.
    """

    thinking: Written | str | None
    image: Drawn | None
    details: dict[str, Any] = field(default_factory=dict)
    stop: str = ""
    critique: Critique = NO_CRITIQUE
    reflection: Written | str | None = None

    @property
    def text(self) -> str:
        """The text that led to the image; empty where there is none."""
        return self.thinking.text if isinstance(self.thinking, Written) else self.thinking or ""

    @classmethod
    def of(cls, critique: Critique, text: str | None = None) -> "Step":
        """The last step of a request that a critic or the budget ends; the image stays."""
        return cls(text if critique.verdict is not None else None, None, stop=critique.stop, critique=critique)


def draws_again(task: Task, mode: str | None) -> bool:
    """Whether a request looks at an image and draws it again."""
    return task == "improve" or (task == "generate" and mode == "irg")


class Protocol:
    """A model's way to reason. A subclass says what is its own; the rest is as BAGEL does it.

    Programs return a list of :class:`Step`. Those with a first image draw it in turn 0; :meth:`loop` of a job with the
    task ``improve`` starts from ``job.images[0]``, which stands for turn 0's.

    Attributes:
        name: as ``--protocol`` takes it.
        texts: official texts that its programs need, by name; the one named ``system`` is the system prompt.
        settings: its settings, over the defaults of :class:`Settings` (names as in ``with_options``).
        tasks, modes: what it can be asked for.
        reflects: whether the model can reflect by itself; if not, its loop needs a critic.
        unused: settings that mean nothing here.
        max_rounds: the most rounds that make sense; None: any number.
        vae_resize, vit_resize: its rules for models whose folder states none.
        posterior, rounded: see :class:`Job`.
    """

    name: ClassVar[str]
    texts: ClassVar[Mapping[str, OfficialText]] = {}
    settings: ClassVar[Mapping[str, Any]] = {}
    tasks: ClassVar[tuple[Task, ...]] = ("generate", "improve", "edit", "ask")
    modes: ClassVar[tuple[Mode, ...]] = ("direct", "think", "irg")
    reflects: ClassVar[bool] = True
    unused: ClassVar[tuple[str, ...]] = ("look", "reflection_context", "stop_when_done", "revise", "thinking_tries")
    max_rounds: ClassVar[int | None] = None
    vae_resize: ClassVar[ResizeRule] = ResizeRule(1024, 512, 16)
    vit_resize: ClassVar[ResizeRule] = ResizeRule(980, 224, 14)
    posterior: ClassVar[Literal["sample", "mean"]] = "sample"
    rounded: ClassVar[bool] = False

    # ---- programs

    def program(self, job: Job) -> Program:
        """The program of a job."""
        if job.task in ("edit", "ask"):
            return self.edit(job) if job.task == "edit" else self.ask(job)
        if job.task == "improve" or job.settings.mode == "irg":
            return self.loop(job)
        return self.think(job) if job.settings.mode == "think" else self.direct(job)

    def direct(self, job: Job) -> Program:
        """Prompt -> image, as the base model does it."""
        prompt: Said = yield Say(job.prompt)
        image = yield job.draw(0, prompt.handles)
        return [Step(None, image)]

    def think(self, job: Job) -> Program:
        """Prompt -> thinking -> image."""
        if job.system:
            yield Say(job.system)
        prompt: Said = yield Say(job.prompt)
        thinking: Written = yield job.write()
        image = yield job.draw(0, prompt.handles + thinking.handles)
        return [Step(thinking, image)]

    def loop(self, job: Job) -> Program:
        """First image, then looking and drawing again until the rounds are up or it is done."""
        raise NotImplementedError

    def edit_round(self, job: Job, turn: int, image: Image, instruction: str) -> Generator[Operation, Any, Drawn]:
        """Draw the image of a turn from its predecessor and an instruction, in a context made anew."""
        yield Forget()
        shown: Said = yield job.look(image)
        said: Said = yield Say(instruction)
        return (yield job.draw(turn, said.handles, shown.handles))

    def edit(self, job: Job) -> Program:
        """Given images and an instruction -> image; in mode ``think`` with thinking before it."""
        thinks = job.settings.mode == "think"
        if thinks and job.system:
            yield Say(job.system)
        looked: Handles = ()
        for image in job.images:
            shown: Said = yield job.look(image)
            looked += shown.handles
        said: Said = yield Say(job.prompt)
        if not thinks:
            drawn: Drawn = yield job.draw(1, said.handles, looked)
            return [Step(None, drawn)]
        thinking: Written = yield job.write()
        drawn = yield job.draw(1, said.handles + thinking.handles, looked + thinking.handles)
        return [Step(thinking, drawn)]

    def ask(self, job: Job) -> Program:
        """Given images and a question -> answer; in mode ``think`` with thinking before it. The images are shown
        through the ViT alone."""
        if job.settings.mode == "think" and job.system:
            yield Say(job.system)
        for image in job.images:
            yield job.look(image, vae=False)
        yield Say(job.prompt)
        answer: Written = yield job.write()
        return [Step(answer, None, stop="answered")]

    # ---- for the pipeline

    def check(self, settings: Settings, usual: Settings, task: Task) -> None:
        """Check that a request makes sense in this protocol. ``usual`` are the model's own settings.

        Raises:
            ValueError: it does not.
        """
        if task not in self.tasks:
            raise ValueError(f"protocol {self.name!r} can't {task}; it can {', '.join(self.tasks)}")
        if task != "improve" and settings.mode not in self.modes:
            raise ValueError(f"protocol {self.name!r} has no mode {settings.mode!r}; it has {', '.join(self.modes)}")
        loops = draws_again(task, settings.mode)
        if loops and settings.critic == SELF_CHECK:
            if "revise" in self.unused:
                raise ValueError(f"critic {SELF_CHECK} has no meaning in protocol {self.name!r}; it is for 'irg'")
            if settings.revise != "thinking":
                raise ValueError(f"critic {SELF_CHECK} needs revise 'thinking': a flaw is answered by a new thinking")
        for name in self.unused:
            if getattr(settings, name) != getattr(usual, name):
                raise ValueError(f"{name} has no meaning in protocol {self.name!r}")
        if loops and settings.critic == SELF and not self.reflects:
            raise ValueError(
                f"protocol {self.name!r} does not reflect by itself; its loop needs a critic, such as endpoint:MODEL"
            )
        if settings.critic not in (SELF, usual.critic) and not loops:
            where = f"mode {settings.mode!r}" if task == "generate" else f"{task}ing"
            raise ValueError(f"critic has no meaning in {where}, which draws no image again; it is for mode 'irg'")
        if loops and self.max_rounds is not None and settings.rounds > self.max_rounds:
            raise ValueError(f"protocol {self.name!r} has at most {self.max_rounds} rounds, got {settings.rounds}")

    def text_names(self, task: Task, mode: str) -> tuple[str, ...]:
        """The official texts that the programs of a task and mode need."""
        if draws_again(task, mode):
            return tuple(self.texts)
        return (self.system_text(task),) if self.texts and mode == "think" else ()

    def system_text(self, task: Task) -> str:
        """The name of the text that is a task's system prompt."""
        if "system" in self.texts:
            return "system"
        return "answer" if task == "ask" and "answer" in self.texts else "think"

    def job_options(self, config: ModelConfig) -> dict[str, Any]:
        """How images are looked at and drawn with a model: fields of :class:`Job`."""
        own = states_no_rules(config)
        return {
            "vae_resize": self.vae_resize if own else config.vae_resize,
            "vit_resize": self.vit_resize if own else None,
            "posterior": self.posterior,
            "rounded": self.rounded,
        }


def states_no_rules(config: ModelConfig) -> bool:
    """Whether a model's rules of resizing are BAGEL's, which its folders do not state."""
    return (config.vae_resize, config.vit_resize) == (Protocol.vae_resize, Protocol.vit_resize)


def find(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ValueError: there is none, or its package can't be imported.
    """
    registry.check(registry.PROTOCOLS, name, "protocol")
    protocol: Protocol = registry.load(registry.PROTOCOLS, name)()
    return protocol
