"""The page: a form, what the loop shows as it goes on, results to compare and to take away."""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

import gradio as gr
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.responses import RedirectResponse

from irg.critics.options import SELF
from irg.reasoning.effort import Effort
from irg.reasoning.protocols.base import Task, draws_again
from irg.reasoning.settings import Mode, with_options
from irg.results.trajectory import Trajectory
from irg.serving.capabilities import Capabilities
from irg.serving.guard import PAGE
from irg.serving.service import Service
from irg.serving.ui.results import changes_of, command, zipped
from irg.serving.ui.running import Form, Progress, run, sentence

TASKS: dict[Task, str] = {"generate": "Draw", "improve": "Improve", "edit": "Edit", "ask": "Ask"}
MODES: dict[Mode, str] = {"irg": "Draw, look, draw better", "think": "Think, draw", "direct": "Draw at once"}
THINKS_FIRST = "Think, draw, look, draw better"
"""Mode ``irg`` of protocols that have ``think``, too."""
REVISE = {"reflection": "Draw as the reflection says", "thinking": "Think anew, then draw"}
MAX_TRIES = 8
EFFORTS = [(name.capitalize(), name) for name in get_args(Effort)]
SIZES = ("auto", "1:1", "4:3", "3:4", "16:9", "9:16")
HISTORY = 24
"""Images that a session's history keeps."""
FONTS = ("system-ui", "sans-serif")  # nothing is fetched from elsewhere
KEYS = """
<script>
document.addEventListener("keydown", (event) => {
  const click = (id) => document.querySelector(`#${id}`)?.click();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); click("generate"); }
  if (event.key === "Escape") click("stop");
}, true);
</script>
"""
CSS = """
.gradio-container { width: 100% !important; max-width: 1280px !important; margin: auto; }
#status { min-height: 1.6em; }
footer { display: none !important; }
#first img, #last img { width: 100%; height: 100%; object-fit: contain; }
#gallery .grid-container, #history .grid-container {
  grid-template-columns: repeat(auto-fill, 110px) !important;
}
@media (max-width: 760px) {
  .stacked { flex-direction: column !important; }
  .stacked > * { width: 100% !important; min-width: 0 !important; }
  .form-column { display: contents !important; }
  #settings { order: 1; }  /* after what is shown */
}
"""


class Page:
    """The components of the page and what their events do."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._folder = tempfile.TemporaryDirectory(prefix="irg-page-")
        self._limits = service.options.limits
        # components are made in the page's order
        self.blocks = gr.Blocks(title="irg", analytics_enabled=False, delete_cache=(3600, 3600))
        with self.blocks:
            gr.Markdown("## irg: think, draw, look again, draw better")
            with gr.Row(elem_classes="stacked"):
                with gr.Column(scale=2, min_width=320, elem_classes="form-column"):
                    self._form()
                    with gr.Column(elem_id="settings"):
                        self._settings()
                with gr.Column(scale=3, min_width=320):
                    self._shown()
            self.history_state: gr.State = gr.State([])
            self._wire()

    def _form(self) -> None:
        self.task = gr.Radio(_named(TASKS), value="generate", label="What to do", elem_id="task")
        self.image = gr.Image(
            type="filepath",
            image_mode=None,  # the file as it is: the project's own reader decodes it
            label="Your image",
            visible=False,
            elem_id="given",
            sources=["upload", "clipboard"],
        )
        self.prompt = gr.Textbox(
            label="Prompt",
            lines=3,
            autofocus=True,
            elem_id="prompt",
            placeholder="a photo of three red apples left of a bus",
        )
        with gr.Row():
            self.go = gr.Button("Generate", variant="primary", elem_id="generate")
            self.stop = gr.Button("Stop", elem_id="stop")
        gr.Markdown("<small>Ctrl+Enter generates, Escape stops.</small>")

    def _settings(self) -> None:
        self.mode = gr.Radio(_named(MODES), value="irg", label="Mode", elem_id="mode")
        most = self._limits.max_rounds
        self.rounds = gr.Slider(1, most, 1, step=1, label="Rounds: times to look again", elem_id="rounds")
        self.critic = gr.Dropdown([SELF], value=SELF, label="Who says what is wrong", visible=False, elem_id="critic")
        self.revise = gr.Radio(
            _named(REVISE), value="reflection", label="When something is wrong", visible=False, elem_id="revise"
        )
        self.tries = gr.Slider(
            1,
            MAX_TRIES,
            1,
            step=1,
            label="Thinkings to try, as the critic says",
            visible=False,
            elem_id="tries",
        )
        self.effort = gr.Radio(EFFORTS, value="balanced", label="Effort", elem_id="effort")
        with gr.Row():
            self.size = gr.Dropdown(list(SIZES), value="auto", label="Size", allow_custom_value=True)
            self.count = gr.Slider(1, self._limits.max_images, 1, step=1, label="Images")
        with gr.Row():
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
            self.random = gr.Checkbox(True, label="New seed each time", elem_id="random")

    def _shown(self) -> None:
        self.status = gr.Markdown("", elem_id="status")
        self.thinking = gr.Textbox(label="Thinking", lines=2, max_lines=8, interactive=False, elem_id="thinking")
        with gr.Row():
            self.first = _image("First image", "first")
            self.last = _image("Improved image", "last")
        self.reflection = gr.Textbox(label="Reflection", lines=2, max_lines=8, interactive=False, elem_id="reflection")
        self.answer = gr.Textbox(
            label="Answer", lines=4, max_lines=12, visible=False, interactive=False, elem_id="answer"
        )
        self.changes = gr.Markdown("")
        self.slider = gr.ImageSlider(label="Compare", interactive=False, visible=False, elem_id="slider")
        self.gallery = gr.Gallery(
            label="All images", columns=4, height=150, object_fit="contain", visible=False, elem_id="gallery"
        )
        with gr.Row():
            self.download = gr.DownloadButton("Download everything (zip)", visible=False, elem_id="download")
        self.copy = gr.Textbox(
            label="The same from the command line", interactive=False, visible=False, elem_id="copy", buttons=["copy"]
        )
        self.history = gr.Gallery(
            label="This session", columns=6, height=150, object_fit="contain", visible=False, elem_id="history"
        )

    def _wire(self) -> None:
        offered = [self.status, self.task, self.mode, self.rounds, self.critic, self.revise, self.tries]
        self.blocks.load(
            self._offer, None, offered, show_progress="hidden", concurrency_limit=None, api_visibility="private"
        )
        used = [self.image, self.mode, self.effort, self.size, self.rounds, self.critic, self.revise, self.tries]
        for changed in (self.task, self.mode):
            changed.change(self._use, [self.task, self.mode], used, api_visibility="private")
        inputs = [self.task, self.image, self.prompt, self.mode, self.rounds, self.critic, self.revise, self.tries]
        inputs += [self.effort, self.size, self.count]
        outputs = [self.status, self.thinking, self.first, self.reflection, self.last, self.answer, self.changes]
        results = [self.slider, self.gallery, self.download, self.copy, self.history]
        began = self.go.click(
            self._run,
            [*inputs, self.seed, self.random, self.history_state],
            [*outputs, *results, self.seed, self.history_state],
            show_progress="hidden",
            concurrency_limit=None,  # the engine's queue is the limit
            trigger_mode="once",
            api_visibility="private",
        )
        self.stop.click(lambda: "Stopped.", None, self.status, cancels=[began], queue=False, api_visibility="private")

    async def _offer(self) -> AsyncIterator[dict[Any, Any]]:
        """What the model's protocol has, as soon as the model is there."""
        while self.service.model is None:
            if self.service.problem is not None:
                yield {self.status: "⚠️ The model could not be loaded; the server's log says why."}
                return
            yield {self.status: "The model is being loaded ..."}
            await asyncio.sleep(0.5)
        usual, can = self.service.loaded().pipe.defaults, self._capabilities()
        labels = MODES | {"irg": THINKS_FIRST} if "think" in can.modes else MODES
        modes = [(label, mode) for mode, label in labels.items() if mode in can.modes]
        critics = [("The model itself" if critic == SELF else critic, critic) for critic in can.critics]
        yield {
            self.status: "",
            self.task: gr.update(choices=[(TASKS[task], task) for task in can.tasks], value=can.tasks[0]),
            self.mode: gr.update(choices=modes, value=usual.mode if usual.mode in can.modes else modes[0][1]),
            self.rounds: gr.update(maximum=can.max_rounds, value=min(usual.rounds, can.max_rounds)),
            self.critic: gr.update(choices=critics, value=critics[0][1] if critics else None, visible=len(critics) > 1),
            self.revise: gr.update(value=usual.revise, visible=can.revises),
            self.tries: gr.update(value=min(usual.thinking_tries, MAX_TRIES), visible=_reads(can)),
        }

    def _capabilities(self) -> Capabilities:
        """Those of the loaded model."""
        pipe = self.service.loaded().pipe
        return Capabilities.of(pipe.protocol, pipe.defaults.critic, self.service.options)

    def _use(self, task: Task, mode: Mode) -> dict[Any, Any]:
        """Show what of the form a task and mode have use for."""
        shown = {self.image: task != "generate", self.mode: task == "generate"}
        shown[self.effort] = shown[self.size] = task != "ask"
        if self.service.model is not None:
            loops, can = draws_again(task, mode), self._capabilities()
            shown[self.rounds] = loops
            shown[self.critic] = loops and len(can.critics) > 1
            shown[self.revise] = loops and can.revises
            shown[self.tries] = loops and _reads(can)
        return {component: gr.update(visible=visible) for component, visible in shown.items()}

    def _of_flaws(self, chosen: dict[str, Any]) -> dict[str, Any]:
        """What was chosen about flaws, as far as it is not what the model does by itself."""
        if self.service.model is None:
            return {}
        usual = self.service.model.pipe.defaults
        with_critic = with_options(usual, {"critic": chosen["critic"]})
        compared = dict.fromkeys(chosen, with_critic) | {"critic": usual}
        return {name: value for name, value in chosen.items() if value != getattr(compared[name], name)}

    async def _run(
        self,
        task: Task,
        image: str | None,
        prompt: str,
        mode: Mode,
        rounds: float,
        critic: str | None,
        revise: str,
        tries: float,
        effort: str,
        size: str,
        count: float,
        seed: float | None,
        random: bool,
        history: list[Any],
    ) -> AsyncIterator[dict[Any, Any]]:
        """Carry a request out, and show it: what each step changes on the page."""
        chosen = secrets.randbelow(2**32) if random or seed is None else int(seed)
        settings: dict[str, Any] = {"seed": chosen, "effort": effort}
        if task == "generate":
            settings["mode"] = mode
        if draws_again(task, mode):
            settings["rounds"] = int(rounds)
            settings |= self._of_flaws({"critic": critic or SELF, "revise": revise, "thinking_tries": int(tries)})
        given = Path(image).read_bytes() if image is not None and task != "generate" else None
        form = Form(prompt, task, given, int(count), size, settings)
        yield self._cleared(form, image) | {self.seed: chosen}
        progress, images = Progress(), 0
        try:
            async with aclosing(run(self.service, form)) as steps:
                async for progress in steps:
                    changed = self._texts(progress, form)
                    if len(progress.rounds) > images:  # an image is sent once
                        changed |= self._images(progress, form)
                        images = len(progress.rounds)
                    yield changed
            found = [one for _, one in sorted(progress.finished.items())]
            archive = await run_sync(zipped, found, Path(self._folder.name))
            yield self._texts(progress, form) | self._ended(found, form, history, archive)
        except Exception as error:
            yield {self.status: f"⚠️ {sentence(error)}"}

    def _cleared(self, form: Form, image: str | None) -> dict[Any, Any]:
        """Places for what this request will show, with nothing of the one before. ``image``: the given one's path."""
        loops, draws = draws_again(form.task, form.settings.get("mode")), form.task != "ask"
        label = "Your image" if form.task == "improve" else "First image" if loops else "Image"
        shown = {self.answer: not draws, self.reflection: loops}
        shown[self.thinking] = form.settings.get("mode") in ("think", "irg")
        for one in (self.slider, self.gallery, self.download, self.copy):
            shown[one] = False
        return {
            self.status: Progress().status,
            self.changes: "",
            self.first: gr.update(value=image if form.task == "improve" else None, label=label, visible=draws),
            self.last: gr.update(value=None, visible=loops),
            **{component: gr.update(value=None, visible=visible) for component, visible in shown.items()},
        }

    def _texts(self, progress: Progress, form: Form) -> dict[Any, Any]:
        turns = sorted(progress.texts)
        thinking = progress.text(0)
        reflection = progress.text(turns[-1]) if turns and turns[-1] > 0 else ""
        said: dict[Any, Any] = {self.thinking: thinking, self.reflection: reflection}
        if form.task == "ask":
            said = {self.answer: thinking or reflection}
        elif form.task == "edit":  # what is thought of the given image is of turn 1; some models think nothing
            said = {self.thinking: gr.update(value=reflection, visible=bool(reflection))}
        return {self.status: progress.status, **said}

    def _images(self, progress: Progress, form: Form) -> dict[Any, Any]:
        """The newest image, in its place: that of the first or of the improved one."""
        newest = progress.rounds[max(progress.rounds)]
        is_first = len(progress.rounds) == 1 and form.task != "improve"
        return {self.first if is_first else self.last: newest}

    def _ended(self, found: list[Trajectory], form: Form, history: list[Any], archive: Path) -> dict[Any, Any]:
        """What is shown once everything is finished."""
        first = found[0]
        turns = [turn.image for turn in first.turns if turn.image is not None]
        pair = (turns[0], turns[-1]) if len(turns) > 1 else None
        images = [
            (image, f"image {n}" if len(found) == 1 else f"{k}: image {n}")
            for k, one in enumerate(found, start=1)
            for n, image in enumerate(one.images, start=1)
        ]
        finals = [(one.image, f"{one.prompt}, seed {one.seed}"[:80]) for one in found if _draws(one)]
        history = [*reversed(finals), *history][:HISTORY]
        return {
            self.status: _summary(first, len(found)),
            self.answer: first.answer or "",
            self.changes: changes_of(first),
            self.last: gr.update(visible=pair is not None and draws_again(form.task, form.settings.get("mode"))),
            self.slider: gr.update(value=pair, visible=pair is not None),
            self.gallery: gr.update(value=images, visible=len(images) > 1),
            self.download: gr.update(value=str(archive), visible=True),
            self.copy: gr.update(value=self._command(form), visible=form.task == "generate"),
            self.history: gr.update(value=history, visible=bool(history)),
            self.history_state: history,
        }

    def _command(self, form: Form) -> str:
        named = {name: value for name, value in form.settings.items() if name != "seed"}
        if form.size != "auto":
            named["size"] = form.size
        return command(form.prompt, self.service.loaded().pipe.name, form.settings["seed"], named)


def _named(names: Mapping[Any, str]) -> list[tuple[str, Any]]:
    """Choices of a component: what is shown, and its value."""
    return [(label, value) for value, label in names.items()]


def _reads(can: Capabilities) -> bool:
    """Whether there may be a critic that reads thinkings, so that several can be tried."""
    return can.revises and any(critic != SELF for critic in can.critics)


def _draws(trajectory: Trajectory) -> bool:
    """Whether an image was drawn, not only given."""
    return any(turn.image is not None and not turn.given for turn in trajectory.turns)


def _image(label: str, name: str) -> gr.Image:
    buttons: list[Any] = ["download", "fullscreen"]
    return gr.Image(label=label, interactive=False, format="png", elem_id=name, height=300, buttons=buttons)


def _summary(trajectory: Trajectory, count: int) -> str:
    """How it went, in a sentence."""
    if trajectory.answer is not None or not trajectory.images:
        return f"Answered in {trajectory.seconds:.1f} s."
    if count > 1:
        return f"{count} results, seeds {trajectory.seed} to {trajectory.seed + count - 1}."
    looked = "looked at its image and found nothing to improve" if trajectory.stop_reason == "done" else ""
    return f"Done in {trajectory.seconds:.1f} s{': the model ' + looked if looked else ''}. Seed {trajectory.seed}."


def mount(app: FastAPI, service: Service) -> FastAPI:
    """Put the page at :data:`irg.serving.guard.PAGE` of an app, and let ``/`` lead there."""
    app.add_route("/", lambda request: RedirectResponse(f"{PAGE}/"), include_in_schema=False)
    limits = service.options.limits
    return gr.mount_gradio_app(
        app,
        Page(service).blocks,
        PAGE,
        theme=gr.themes.Default(font=list(FONTS), font_mono=["monospace"]),
        css=CSS,
        head=KEYS,
        footer_links=[],
        max_file_size=int(limits.max_body_mb * 1e6),
        ssr_mode=False,
        enable_monitoring=False,
        show_error=False,
        allowed_paths=[],
    )
