"""Programs of protocols run with given texts in the place of the model's, and what each text and image was made on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from irg.critics import CriticError
from irg.engine.ops import Draw, Drawn, Forget, Handles, Look, Program, Say, Wait, Write, Written
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.protocols.base import Job, Protocol

Parts = list[str]  # texts as they are; of image 0 "vae0" and "vit0"


@dataclass
class Drawing:
    """The parts that an image was drawn on, by branch; None: guidance by the image is off."""

    main: Parts
    text_free: Parts
    image_free: Parts | None
    op: Draw


@dataclass
class Scripted:
    """Its program stands for a protocol's.

    Attributes:
        texts: by prompt, what is written, one after the other; the prefix of a text included.
        images: what takes the place of images that are drawn, by number.
        writes, draws: by prompt, what was written and drawn on what.
        looked_at: sizes of the images that were shown.
    """

    protocol: Protocol
    tokenizer: TextTokenizer
    texts: Mapping[str, Sequence[str]]
    images: Mapping[int, Image.Image] = field(default_factory=dict)
    writes: dict[str, list[Parts]] = field(default_factory=dict)
    draws: dict[str, list[Drawing]] = field(default_factory=dict)
    looked_at: list[tuple[int, int]] = field(default_factory=list)

    def program(self, job: Job) -> Program:
        texts, parts = iter(self.texts.get(job.prompt, ())), Parts()
        seen: list[Image.Image] = list(job.images)
        writes, draws = self.writes.setdefault(job.prompt, []), self.draws.setdefault(job.prompt, [])
        program = self.protocol.program(job)
        op = next(program)
        while True:
            failed: CriticError | None = None
            match op:
                case Say(str(text)):
                    result = yield op
                    parts.append(text)
                case Look(image):
                    number = next((i for i, one in enumerate(seen) if one.tobytes() == image.tobytes()), None)
                    if number is None:  # a part of the newest one
                        assert image.size != seen[-1].size
                        number = len(seen) - 1
                    self.looked_at.append(image.size)
                    result = yield op
                    parts += [f"{kind}{number}" for kind, shown in (("vae", op.vae), ("vit", op.vit)) if shown]
                case Write():
                    writes.append(list(parts))
                    text = next(texts)
                    prefix = op.prefix if isinstance(op.prefix, str) else ""
                    assert text.startswith(prefix)
                    forced = self.tokenizer.encode(text.removeprefix(prefix))
                    result: Written = yield replace(op, forced=tuple(forced))
                    assert result.text == text
                    parts.append(text)
                case Draw():
                    uses_image = op.settings.cfg_img_scale > 1
                    image_free = without(parts, op.drop_image) if uses_image else None
                    draws.append(Drawing(without(parts, op.drop), without(parts, op.drop_text), image_free, op))
                    drawn: Drawn = yield op
                    result = replace(drawn, image=self.images.get(len(draws) - 1, drawn.image))
                    seen.append(result.image)
                case Forget(handles):
                    result = yield op
                    del parts[handles[-1] + 1 if handles else 0 :]
                case Wait():
                    try:
                        result = yield op
                    except CriticError as error:  # the program may catch it
                        failed = error
            try:
                op = program.throw(failed) if failed else program.send(result)
            except StopIteration as stop:
                assert next(texts, None) is None, "a text was not written"
                return stop.value


def without(parts: Parts, dropped: Handles) -> Parts:
    """The parts but for those of some handles."""
    return [part for handle, part in enumerate(parts) if handle not in dropped]
