"""UMM-Reflection (waltstephen/UMM-Reflection): a controller that scores the image and decides on one edit at a time.

Two contexts: the controller's only grows (system prompt, prompt, images, its own answers in their strict form); each
image after the first is drawn on its predecessor and the edit alone, in a context made from nothing. Steps of the
sampler are stochastic in a window, as in the training by reward.
"""

import hashlib
import random
import re
from dataclasses import dataclass, replace

from irg import critics
from irg.engine.ops import Draw, Drawn, Forget, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step, Task
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS
from irg.reasoning.settings import Settings
from irg.sequence.images import ResizeRule

SCORES = tuple(f"{n}/10" for n in range(11))
_SEED_NAME = "clean29529_g012_local_sde_window_seed_v1"
_RL_STEP = 500  # of the published training by reward
_NO_PAYLOAD = ("", "none", "null", "n/a", "na")
_FIELDS = ("[CURRENT_ROUND]", "[SCORE]", "[ACTION]", "[THINKING]", "[SOURCE_IMAGE]")
_PROTOCOL_TEXT = re.compile(r"</?think>?|" + "|".join(map(re.escape, (*_FIELDS, "[EDIT]"))) + r"|<\|[^>\r\n]+\|>", re.I)


@dataclass(frozen=True)
class Verdict:
    """What the controller decided. ``edit`` is None if it is done."""

    score: int
    thinking: str
    edit: str | None

    def to_text(self, turn: int) -> str:
        """The answer in its strict form, which goes into the controller's context; ``turn`` counts edits, from 0."""
        action, payload = ("done", "None") if self.edit is None else ("edit", self.edit)
        return (
            f"{prefix(turn)}{self.score}/10\n[ACTION] {action}\n[THINKING] {self.thinking}\n"
            f"[SOURCE_IMAGE] Image #{turn}\n</think>\n[EDIT] {payload}"
        )


def prefix(turn: int) -> str:
    """How every answer begins; the score follows."""
    return f"<think>\n[CURRENT_ROUND] Round#{turn}\n[SCORE] "


def parse(text: str, refused: tuple[str, ...] = (), empty: tuple[str, ...] = ()) -> Verdict:
    """Read an answer, prefix included; what it says of round and source image does not count.

    Args:
        refused: sentences that are no thinking, without capital letters.
        empty: sentences that are no edit; an edit without a payload means done.

    Raises:
        ValueError: it has not the strict form; the message says where.
    """
    if not text.startswith("<think>") or text.count("<think>") != 1 or text.count("</think>") != 1:
        raise ValueError("not one pair of think tags from the start on")
    inside, _, after = text.partition("</think>")
    if not after.startswith("\n[EDIT] ") or after.upper().count("[EDIT]") != 1:
        raise ValueError("not one [EDIT] directly after the thinking")
    payload = after.removeprefix("\n[EDIT] ")
    action = re.match(r"[ \t]*(edit|done)[ \t]*(?:[,\r\n]|\[[A-Z]|\Z)", _after_only("[ACTION]", inside), re.I)
    if action is None:
        raise ValueError("[ACTION] is neither edit nor done")
    thinking = re.split(r"\[SOURCE_IMAGE\]", _after_only("[THINKING]", inside), maxsplit=1, flags=re.I)[0].strip()
    if not thinking or thinking.casefold() in refused:
        raise ValueError("[THINKING] without a text")
    verdict = Verdict(_score(text), thinking, _edit(action[1].lower(), payload, empty))
    _check_order(verdict.to_text(0))
    return verdict


def _after_only(tag: str, inside: str) -> str:
    """What follows the only occurrence of a tag."""
    parts = re.split(re.escape(tag), inside, flags=re.I)
    if len(parts) != 2:
        raise ValueError(f"not one {tag}")
    return parts[1]


def _score(text: str) -> int:
    lines = re.findall(r"^[ \t]*\[SCORE\](.*)$", text, re.I | re.M)
    match = re.fullmatch(r"[ \t]*(\d\d?)[ \t]*/[ \t]*10[ \t]*", lines[0]) if len(lines) == 1 else None
    if match is None or int(match[1]) > 10:
        raise ValueError("not one line [SCORE] from 0/10 to 10/10")
    return int(match[1])


def _edit(action: str, payload: str, empty: tuple[str, ...]) -> str | None:
    if action == "done":
        if payload != "None":
            raise ValueError("done, but [EDIT] is not None")
        return None
    if payload.strip().casefold() in (*_NO_PAYLOAD, *empty):
        return None
    if payload != payload.strip() or _PROTOCOL_TEXT.search(payload):
        raise ValueError("[EDIT] with spaces around it or protocol text in it")
    return payload


def _check_order(answer: str) -> None:
    """A second look at an answer in its strict form: each field begins a line, once and in order, and nothing else
    looks like a field.

    Raises:
        ValueError: a line of the thinking looks like one.
    """
    inside = answer.partition("</think>")[0]
    found = re.findall(r"^[ \t]*(\[[A-Z][A-Z _-]*\])", inside, re.M)
    if tuple(found) != _FIELDS or "[EDIT]" in inside.upper():
        raise ValueError("[THINKING] with what looks like another field")


def in_form(verdict: critics.Verdict) -> Verdict:
    """A critic's verdict that asks for an edit, as the controller would have decided; the form's own tags are left out
    of its words."""
    wrong, change = (
        " ".join(_PROTOCOL_TEXT.sub("", text).split()) for text in (verdict.wrong or verdict.change, verdict.change)
    )
    return Verdict(round(10 * verdict.score), wrong, change)


def window_start(seed: int, index: int, turn: int, last: int, step: int = _RL_STEP) -> int:
    """The first stochastic step of an edit, from 0 to ``last``.

    Args:
        seed, index, step: of the run, the prompt in it, and the training step of the weights.
        turn: edits before this one.
    """
    identity = f"{_SEED_NAME}|{seed}|{step}|{index}|{turn}".encode()
    return random.Random(int.from_bytes(hashlib.sha256(identity).digest()[:8], "big")).randint(0, last)


class UMMReflection(Protocol):
    """The published evaluation, one request at a time (the authors' pairs of requests share a renorm factor)."""

    name = "umm-reflection"
    modes = ("direct", "irg")
    texts = PINNED_TEXTS["umm-reflection"]
    vae_resize = ResizeRule(512, 256, 8)
    vit_resize = ResizeRule(490, 112, 7)
    rounded = True
    settings = {
        "rounds": 3,
        "temperature": 0.5,
        "max_think_tokens": 512,
        # 3.0 with an image scale of 1.5 whose branch is the main one: 1 + 1.5 * (3 - 1)
        "cfg_text_scale": 4.0,
        "sde_noise_level": 0.8,
        "sde_window_start": 12,
        "improve_cfg_text_scale": 3.0,
        "improve_cfg_img_scale": 1.5,
        "improve_cfg_interval": (0.4, 1.0),
        "improve_cfg_renorm_type": "global",
        "improve_sde_noise_level": 0.8,
    }

    def loop(self, job: Job) -> Program:
        """Prompt -> image; then score, decide, edit, until it is done, an answer is malformed, or the rounds are up."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.direct(job)
            assert steps[0].image is not None
            image = steps[0].image.image
            yield Forget()
        yield Say(job.system)
        yield Say(job.prompt)
        refused, empty = self._placeholders(job, "refused_thinking"), self._placeholders(job, "empty_edit")
        for turn in range(job.settings.rounds):
            critique = yield from job.consult(turn + 1, image)
            if critique.stop:
                return [*steps, Step.of(critique)]
            shown: Said = yield job.look(image)
            answer: Written | str
            if critique.verdict is not None:
                verdict = in_form(critique.verdict)
                answer = verdict.to_text(turn)
            else:
                write = replace(job.write(turn + 1), prefix=prefix(turn), choices=SCORES)
                answer = written = yield write
                try:
                    verdict = parse(written.text, refused, empty)
                except ValueError as error:
                    return [*steps, Step(answer, None, stop=f"malformed: {error}", critique=critique)]
            details = {"score": verdict.score, "edit": verdict.edit}
            if verdict.edit is None:
                return [*steps, Step(answer, None, details, stop="done", critique=critique)]
            yield Forget(shown.handles)
            replayed: Said = yield Say(verdict.to_text(turn))
            controller = tuple(range(replayed.handles[-1] + 1))
            looked: Said = yield job.look(image)
            edit: Said = yield Say(verdict.edit)
            draw = job.draw(turn + 1, controller + edit.handles, controller + looked.handles, drop=controller)
            drawn: Drawn = yield self._in_window(draw, job.seed, turn)
            yield Forget(replayed.handles)
            steps.append(Step(answer, drawn, details, critique=critique))
            image = drawn.image
        return steps

    @staticmethod
    def _placeholders(job: Job, name: str) -> tuple[str, ...]:
        return tuple(text.strip().casefold() for key, text in job.texts.items() if key.startswith(name))

    @staticmethod
    def _in_window(draw: Draw, seed: int, turn: int) -> Draw:
        """With the stochastic steps of this edit: in the first half of the time points."""
        settings = draw.settings
        last = max(0, settings.num_timesteps // 2 - settings.sde_window_size)
        return replace(draw, settings=replace(settings, sde_window_start=window_start(seed, 0, turn, last)))

    def check(self, settings: Settings, usual: Settings, task: Task) -> None:
        """Square images alone: the strides of its resizing rules are not those of the patches.

        Raises:
            ValueError: another shape, or see :meth:`Protocol.check`.
        """
        super().check(settings, usual, task)
        if settings.height != settings.width:
            raise ValueError(f"protocol {self.name!r} draws squares only, got {settings.width}x{settings.height}")
