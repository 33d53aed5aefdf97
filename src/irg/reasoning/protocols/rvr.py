"""RvR (LeapLabTHU/RvR): the refiner looks at an image through the ViT alone and draws it again; it writes nothing."""

from irg.engine.ops import Drawn, Forget, Program, Said, Say
from irg.reasoning.protocols.base import Job, Protocol, Step
from irg.reasoning.protocols.pinned_texts import PINNED_TEXTS


class RvR(Protocol):
    """RvR-7B-MoT refines an image once. Its folder has weights for first images (``ema``) and to refine (``rvr``)."""

    name = "rvr"
    modes = ("direct", "irg")
    texts = PINNED_TEXTS["rvr"]
    max_rounds = 1
    settings = {
        "rounds": 1,
        # 4.0 with an image scale of 1.5 whose branch is the main one: 1 + 1.5 * (4 - 1)
        "cfg_text_scale": 5.5,
        "improve_cfg_text_scale": 4.0,
        "improve_cfg_img_scale": 2.0,
        "improve_cfg_interval": (0.0, 1.0),
        "improve_cfg_renorm_type": "text_channel",
    }

    def loop(self, job: Job) -> Program:
        """Prompt -> image, then system prompt, image, sentence with the prompt -> image. A critic decides whether to
        refine; the refiner takes no words."""
        steps: list[Step] = []
        if job.task == "improve":
            (image,) = job.images
        else:
            steps = yield from self.direct(job)
            assert steps[0].image is not None
            image = steps[0].image.image
            yield Forget()
        critique = yield from job.consult(1, image)
        if critique.stop:
            return [*steps, Step.of(critique)]
        yield Say(job.system)
        shown: Said = yield job.look(image, vae=False)
        sentence: Said = yield Say(job.texts["prompt_sentence"].format(user_prompt=job.prompt))
        drawn: Drawn = yield job.draw(1, sentence.handles, shown.handles)
        return [*steps, Step(None, drawn, critique=critique)]
