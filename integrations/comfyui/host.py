"""What the nodes need of a running ComfyUI beside their schema: its device, its memory, progress, the stop button."""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import ComfyAPI
from PIL.Image import Image


def _execution() -> Any:
    """ComfyUI's ``api.execution``, which some versions give to the synchronous form of the API alone."""
    return getattr(ComfyAPI(), "execution", None) or ComfyAPI.Execution()


def device() -> str:
    """The device that ComfyUI computes on, such as ``cuda:0``."""
    import comfy.model_management

    return str(comfy.model_management.get_torch_device())


def make_room() -> None:
    """Let ComfyUI put its own models aside, so that a model to be loaded finds the device's memory free."""
    import comfy.model_management

    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def stop_if_interrupted() -> None:
    """End the node with ComfyUI's own exception if the user has stopped the run."""
    import comfy.model_management

    comfy.model_management.throw_exception_if_processing_interrupted()


def shows_previews() -> bool:
    """Whether samplers show what they draw: ``--preview-method``, or what the page has set in its place."""
    import comfy.cli_args

    return str(comfy.cli_args.args.preview_method.value) != "none"


class Progress:
    """The bar of the node that runs: updates of images, ``per_turn`` of each."""

    def __init__(self, per_turn: Sequence[int]) -> None:
        self.per_turn, self.total = per_turn, max(1, sum(per_turn))

    async def show(self, turn: int, step: int = 0, preview: Image | None = None) -> None:
        """``step`` updates of the image number ``turn`` (0 the first) are done; ``preview`` is shown on the node."""
        value = min(sum(self.per_turn[:turn]) + step, self.total)
        options: dict[str, Any] = {} if preview is None else {"preview_image": preview}
        await _execution().set_progress(value, self.total, **options)
