"""A contact sheet: what a model draws for a fixed list of prompts, not picked by anyone.

``python -m irg_mini.measure.contact_sheet --model DIR --out sheet.png``: first images above,
improved ones below them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from irg.reasoning.pipeline import IRGPipeline
from irg_mini.world import contact_sheet

PROMPTS = (
    "a photo of a cat",
    "a photo of a bicycle",
    "a photo of a teddy bear",
    "a photo of a pizza",
    "a photo of a boat",
    "a photo of an umbrella",
    "a photo of a dog and a bench",
    "a photo of a cake and a cup",
    "a photo of a car and a traffic light",
    "a photo of two apples",
    "a photo of three cows",
    "a photo of four clocks",
    "a photo of a blue cup",
    "a photo of a green elephant",
    "a photo of a purple chair",
    "a photo of a red book",
    "a photo of a dog right of a tie",
    "a photo of a pizza below a giraffe",
    "a photo of a bird above a bus",
    "a photo of a banana left of a laptop",
    "a photo of a purple chair and a black horse",
    "a photo of a red car and a green suitcase",
    "a photo of a yellow bus and a blue bird",
    "a photo of three red apples left of a bus",
    "a photo of a fire hydrant",
    "a photo of a surfboard",
    "a photo of a giraffe",
    "a photo of an airplane at night",
    "a photo of a train in a forest",
    "a photo of a hot dog in a studio",
    "a photo of a parking meter and an oven",
    "a photo of a toaster and a bear",
    "a photo of a microwave and a vase",
    "a photo of two toilets",
    "a photo of four birds",
    "a photo of five oranges",
    "a photo of an orange refrigerator",
    "a photo of a pink skateboard",
    "a photo of a black cat",
    "a photo of a white truck",
    "a cat on a couch",
    "a dog behind a chair",
    "a photo of a kite above a boat",
    "a photo of a cow left of a stop sign",
    "a photo of a green cup and a brown clock",
    "a photo of a blue laptop and a red kite",
    "two purple umbrellas and a horse",
    "a cat, a pizza, a clock and a bicycle",
)


@dataclass(frozen=True)
class Sheet:
    """Which model, where to."""

    model: str = "mini"
    out: str = "sheet.png"
    seed: int = 0
    columns: int = 12
    enlarge: int = 1


def draw_sheet(options: Sheet) -> Path:
    """Draw all prompts with one round of reflection and write the sheet."""
    pipe = IRGPipeline.from_pretrained(options.model)
    outputs = pipe(list(PROMPTS), seed=options.seed, mode="irg", stop_when_done=False, batch_size=len(PROMPTS))
    images: list[np.ndarray] = []
    for start in range(0, len(outputs), options.columns):
        row = outputs[start : start + options.columns]
        images += [np.asarray(output.initial_image) for output in row]
        images += [np.asarray(output.image) for output in row]
    sheet = contact_sheet(images, columns=options.columns)
    sheet.resize((sheet.width * options.enlarge, sheet.height * options.enlarge)).save(options.out)
    return Path(options.out)


if __name__ == "__main__":
    import tyro

    print(draw_sheet(tyro.cli(Sheet)))
