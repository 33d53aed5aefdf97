"""Targets by a local diffusers pipeline: kind ``diffusers``."""

import importlib.util
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from irg.curation.content import performance
from irg.curation.endpoint_stages import check_edit
from irg.curation.instructions import instruction
from irg.curation.parts import Parts, Targets
from irg.curation.records import png
from irg.curation.resources import Resources
from irg.curation.stages import Outcome, Stage, accepted
from irg.curation.store import Row
from irg.hub_downloads import only_cached
from irg.image_files import open_image


@dataclass(frozen=True)
class DiffusersTargets(Targets):
    """Targets by a local diffusers pipeline. ``edit`` needs one that takes an image and an instruction."""

    kind: Literal["diffusers"]
    model: str
    edit: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    batch_size: int = performance(4, was="batch")
    device: str = performance("cuda")

    def check(self, parts: Parts) -> None:
        check_edit(self.edit, parts)

    def stage(self, parts: Parts) -> Stage:
        return DiffusersStage(self)


class DiffusersStage(Stage):
    """I2 by a diffusers pipeline: any text-to-image one, or any that takes ``image`` and ``prompt``."""

    name, columns = "target", {"improved": bytes}
    config: DiffusersTargets

    def __init__(self, config: DiffusersTargets) -> None:
        super().__init__(config)
        self.batch_size = config.batch_size

    def find(self) -> None:
        check_installed()
        only_cached(self.config.model, say=lambda line: None)  # loading says it

    async def open(self, resources: Resources) -> None:
        self.resources = resources
        self.pipe = resources.get_or_load(f"diffusers {self.config.model}", lambda: load_diffusers(self.config))

    async def make(self, rows: list[Row]) -> list[Outcome]:
        return [await self.resources.run_in_model_thread(self._generate, row) for row in rows]

    def _generate(self, row: Row) -> Row:
        import torch

        generator = torch.Generator("cpu").manual_seed(row["seed"] + 1)
        options = dict(self.config.options)
        if self.config.edit and row["turns"] == 2:
            options["image"] = open_image(row["image"])
        image = self.pipe(prompt=instruction(row, "image" in options), generator=generator, **options).images[0]
        by = {"model": self.config.model, "seed": row["seed"] + 1, "options": self.config.options}
        return accepted(row, by, improved=png(np.asarray(image.convert("RGB"))))


def check_installed() -> None:
    """ValueError without diffusers."""
    if importlib.util.find_spec("diffusers") is None:
        raise ValueError("targets by diffusers need the package: pip install 'irg[diffusers]'")


def load_diffusers(config: DiffusersTargets) -> Any:
    """The pipeline, on its device.

    Raises:
        ValueError: diffusers is not installed, or there is no such model.
    """
    check_installed()
    import diffusers
    import torch

    dtype = torch.bfloat16 if config.device.startswith("cuda") else torch.float32
    cached = only_cached(config.model)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            config.model, torch_dtype=dtype, use_safetensors=True, local_files_only=cached
        )
    except OSError as error:
        raise ValueError(
            f"target.model: no diffusers pipeline {config.model!r}: {' '.join(str(error).split())}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(config.device)
