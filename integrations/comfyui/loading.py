"""The node that loads a model into ComfyUI's own process."""

import logging
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from . import host
from .convert import Autoencoder
from .inputs import Model

if TYPE_CHECKING:
    from irg.reasoning.pipeline import IRGPipeline

_log = logging.getLogger("irg")
MEMORY = ["auto", "bf16", "int8", "int4", "fp8", "offload"]


@dataclass(frozen=True)
class LocalModel:
    """An IRG_MODEL.

    Attributes:
        downloads: whether something may be downloaded for it.
    """

    pipe: "IRGPipeline"
    downloads: bool

    def check_critic(self, critic: str) -> None:
        """Refuse a critic that would be downloaded unasked.

        Raises:
            ValueError: it would.
        """
        if critic.startswith("hf:") and not self.downloads:
            raise ValueError(f"critic {critic!r} may have to be downloaded: turn on download at IRG Load Model")


class LoadModel(io.ComfyNode):
    """Loads a model; ComfyUI keeps it as long as the inputs stay the same."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="IRGLoadModel",
            display_name="IRG Load Model",
            category="IRG",
            description="A model that thinks, draws, looks at its image and draws again, such as BAGEL or irg-mini.",
            inputs=[
                io.String.Input(
                    "model", default="mini", tooltip="mini (bundled), a model folder, or a hub id: owner/name."
                ),
                io.Combo.Input(
                    "memory",
                    options=MEMORY,
                    default="auto",
                    tooltip="How the model is made to fit: auto takes the first that fits.",
                ),
                io.Boolean.Input(
                    "download",
                    default=False,
                    tooltip="Whether a hub model that is not on this machine may be downloaded.",
                ),
                io.String.Input(
                    "protocol", default="", optional=True, tooltip="The way to reason; empty: the model's own."
                ),
            ],
            outputs=[
                Model.Output("loaded", display_name="model"),
                io.Vae.Output(
                    "vae", display_name="vae", tooltip="The model's autoencoder, for VAE Decode and VAE Encode."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model: str | None = None, memory: str | None = None) -> bool | str:
        """Whether there is such a model; one that would be downloaded is looked for when the node runs."""
        try:
            from irg.model.weights.folders import model_folder
            from irg.model.weights.hub_names import parse_hub_name
        except ImportError:
            return _not_installed()
        if memory is not None and memory not in MEMORY:
            return f"memory must be one of {', '.join(MEMORY)}, got {memory!r}"
        if model is None:
            return True
        try:
            if parse_hub_name(model) is None:
                model_folder(model, download=False)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: str, memory: str, download: bool, protocol: str = "") -> io.NodeOutput:
        from irg.reasoning.pipeline import IRGPipeline

        host.make_room()
        device = host.device()
        options: dict[str, Any] = {"memory": memory, "protocol": protocol or None, "offline": not download}
        try:
            pipe = IRGPipeline.from_pretrained(model, device, say=_log.info, **options)
        except ValueError as error:
            advice = "; or turn on download" if not download and "cache" in str(error) else ""
            raise ValueError(f"{error}{advice}") from error
        _log.info("IRG: loaded %s on %s", model, device)
        return io.NodeOutput(LocalModel(pipe, download), Autoencoder(pipe))


def _not_installed() -> str:
    return (
        f"irg is not installed in ComfyUI's Python ({sys.executable}). The pack's README.md says how to install it "
        "without touching your torch; or let irg serve run the model, and use the node IRG Server"
    )
