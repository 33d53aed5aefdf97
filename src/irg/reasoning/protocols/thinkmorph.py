"""ThinkMorph (arXiv 2510.27492): answers a question, with images of its own between its thoughts."""

from irg.engine.ops import Drawn, Handles, Program, Said, Say, Written
from irg.reasoning.protocols.base import Job, Protocol, Step, Task
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS

_IMAGE = "<image_start>"  # a thought that has it is followed by an image


class ThinkMorph(Protocol):
    """One context that only grows. The branches of guidance stay as they were before the first thought: the text
    branch holds system prompt and given images, the image branch system prompt and question."""

    name = "thinkmorph"
    tasks = ("generate", "edit", "ask")  # there is no image that it could improve
    unused = (*Protocol.unused, "critic", "critic_fallback")
    texts = PINNED_TEXTS["thinkmorph"]
    settings = {
        "rounds": 3,
        "max_think_tokens": 4096,
        "cfg_text_scale": 4.0,
        "cfg_img_scale": 2.0,
        "cfg_interval": (0.0, 1.0),
        "cfg_renorm_type": "text_channel",
        "improve_cfg_img_scale": 2.0,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def loop(self, job: Job) -> Program:
        """Question -> thought, image, thought, image ... answer; no answer follows the last round's image."""
        yield Say(job.system)
        given: Handles = ()
        for image in job.images:
            shown: Said = yield job.look(image)
            given += shown.handles
        question: Said = yield Say(job.prompt)
        since: Handles = ()
        steps: list[Step] = []
        for turn in range(job.settings.rounds):
            if turn and not job.may_begin(turn):
                return [*steps, Step(None, None, stop="budget")]
            thought: Written = yield job.write()
            if _IMAGE not in thought.text:
                return [*steps, Step(thought, None, stop="answered")]
            since += thought.handles
            drawn: Drawn = yield job.draw(turn, question.handles + since, given + since)
            steps.append(Step(thought, drawn))
            shown = yield job.look(drawn.image)
            since += shown.handles
        return steps

    def ask(self, job: Job) -> Program:
        """A question about given images is what it was trained for."""
        return self.loop(job)

    def text_names(self, task: Task, mode: str) -> tuple[str, ...]:
        """The same system prompt for everything but drawing or editing at once."""
        return tuple(self.texts) if task == "ask" else super().text_names(task, mode)
