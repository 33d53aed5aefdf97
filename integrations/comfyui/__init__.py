"""Nodes of irg for ComfyUI: think, draw, look at the image, reflect, draw a better one."""

from comfy_api.latest import ComfyExtension, io

from .loading import LoadModel
from .loop import Generate
from .remote import Server
from .steps import Draw, Redraw, Reflect, StartFromImage, Think

NODES: list[type[io.ComfyNode]] = [LoadModel, Server, Generate, Think, StartFromImage, Draw, Reflect, Redraw]


class IRGExtension(ComfyExtension):
    """The pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> IRGExtension:
    """What ComfyUI calls."""
    return IRGExtension()
