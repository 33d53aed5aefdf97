"""What a call of the pipeline returns."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from irg.results.trajectory import Trajectory


@dataclass(frozen=True)
class IRGOutput:
    """A finished request. ``image`` is the last image, None if the model answered without one; everything on the way to
    it is in ``trajectory``."""

    trajectory: Trajectory

    @property
    def image(self) -> Image.Image | None:
        return self.trajectory.image

    @property
    def initial_image(self) -> Image.Image | None:
        return self.trajectory.initial_image

    @property
    def thinking(self) -> str | None:
        return self.trajectory.thinking

    @property
    def reflection(self) -> str | None:
        return self.trajectory.reflection

    def save(self, folder: str | Path, overwrite: bool = False) -> Path:
        """PNGs, ``trajectory.json`` and ``report.html`` into a new folder; see :meth:`Trajectory.save`."""
        return self.trajectory.save(folder, overwrite)
