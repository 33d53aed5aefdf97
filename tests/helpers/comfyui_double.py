"""A double of the part of ComfyUI's published V3 schema that the nodes use. It is not ComfyUI and runs no graph: it
knows names, arguments and rules of the schema, so that a node that strays from them fails here.
``integrations/comfyui/tests/run_in_comfyui.py`` holds the nodes against ComfyUI itself.
"""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

PACK = Path(__file__).resolve().parents[2] / "integrations" / "comfyui"


@dataclass
class Input:
    """Of an input: arguments that any input may have."""

    id: str
    display_name: str | None = None
    optional: bool = False
    tooltip: str | None = None
    lazy: bool | None = None
    io_type = "*"


@dataclass
class Output:
    """Of an output."""

    id: str | None = None
    display_name: str | None = None
    tooltip: str | None = None
    is_output_list: bool = False
    io_type = "*"


@dataclass
class _Widget(Input):
    default: Any = None


@dataclass
class _Number(_Widget):
    min: float | None = None
    max: float | None = None
    step: float | None = None
    control_after_generate: bool | None = None


@dataclass
class _Text(_Widget):
    multiline: bool = False
    placeholder: str | None = None


@dataclass
class _Choice(_Widget):
    options: list[str] = field(default_factory=list)


@dataclass
class _Several(Input):
    types: list[Any] = field(default_factory=list)

    def __init__(self, id: str, types: list[Any], **rest: Any) -> None:
        super().__init__(id, **rest)
        self.types = types
        self.io_type = ",".join(one.io_type for one in types)


def _type(io_type: str, inputs: type[Input] = Input) -> Any:
    made = {name: type(name, (base,), {"io_type": io_type}) for name, base in (("Input", inputs), ("Output", Output))}
    return SimpleNamespace(io_type=io_type, **made)


@dataclass
class Schema:
    """A node's description."""

    node_id: str
    display_name: str | None = None
    category: str = "sd"
    inputs: list[Input] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    hidden: list[Any] = field(default_factory=list)
    description: str = ""
    is_output_node: bool = False
    not_idempotent: bool = False

    def __post_init__(self) -> None:
        ids = [one.id for one in (*self.inputs, *self.outputs) if one.id is not None]
        assert len(set(ids)) == len(ids), f"{self.node_id}: ids must be unique among inputs and outputs: {ids}"


class NodeOutput:
    """What a node returns."""

    def __init__(self, *args: Any, ui: Any = None, expand: Any = None, block_execution: str | None = None) -> None:
        self.args, self.ui = args, ui

    def __getitem__(self, index: int) -> Any:
        return self.args[index]


class ComfyNode:
    """The base of all nodes: classes that are never instantiated."""

    def __init__(self) -> None:
        raise AssertionError("nodes are not instantiated")


def check_node(node: type[ComfyNode]) -> Schema:
    """A node's schema, held against its ``execute``: every input is an argument, the optional ones have defaults."""
    schema: Schema = node.define_schema()  # type: ignore[attr-defined]
    arguments = inspect.signature(node.execute).parameters  # type: ignore[attr-defined]
    assert {one.id for one in schema.inputs} == set(arguments), f"{schema.node_id}: inputs are not execute's arguments"
    for one in schema.inputs:
        has_default = arguments[one.id].default is not inspect.Parameter.empty
        assert has_default == one.optional, f"{schema.node_id}.{one.id}: only optional inputs have defaults"
        if isinstance(one, _Choice):
            assert one.default in one.options, f"{schema.node_id}.{one.id}"
        if isinstance(one, _Number):
            assert one.min is not None and one.max is not None and one.min <= one.default <= one.max
    if (validate := getattr(node, "validate_inputs", None)) is not None:
        for name, argument in inspect.signature(validate).parameters.items():
            assert name in arguments, f"{schema.node_id}: validate_inputs takes {name}, which is no input"
            assert argument.default is None, f"{schema.node_id}: a linked {name} is not there when inputs are validated"
    return schema


class Interrupted(Exception):
    """Of the stop button."""


@dataclass
class Host:
    """What the nodes did to ComfyUI, whether the stop button was pressed, and how samplers show what they draw."""

    progress: list[tuple[float, float, Any]] = field(default_factory=list)
    freed: int = 0
    interrupted: bool = False
    preview_method: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(value="none"))

    async def set_progress(self, value: float, max_value: float, preview_image: Any = None) -> None:
        assert 0 <= value <= max_value
        self.progress.append((value, max_value, preview_image))

    def free(self) -> None:
        self.freed += 1

    def throw(self) -> None:
        if self.interrupted:
            raise Interrupted


class ExecutionBlocker:
    """An output that blocks the nodes that take it, with a message."""

    def __init__(self, message: str | None) -> None:
        self.message = message


def _modules(host: Host) -> dict[str, ModuleType]:
    widgets = {"Int": ("INT", _Number), "Float": ("FLOAT", _Number), "String": ("STRING", _Text)}
    widgets |= {"Boolean": ("BOOLEAN", _Widget), "Combo": ("COMBO", _Choice)}
    plain = {"Image": "IMAGE", "Latent": "LATENT", "Vae": "VAE"}
    io = ModuleType("comfy_api.latest.io")
    io.__dict__.update({name: _type(io_type, base) for name, (io_type, base) in widgets.items()})
    io.__dict__.update({name: _type(io_type) for name, io_type in plain.items()})
    io.__dict__.update(Custom=_type, MultiType=SimpleNamespace(Input=_Several), Input=Input, Output=Output)
    io.__dict__.update(Schema=Schema, NodeOutput=NodeOutput, ComfyNode=ComfyNode)
    latest = ModuleType("comfy_api.latest")
    api = type("ComfyAPI", (), {"execution": host})
    latest.__dict__.update(io=io, ComfyExtension=type("ComfyExtension", (), {}), ComfyAPI=api)
    management = ModuleType("comfy.model_management")
    management.__dict__.update(
        get_torch_device=lambda: "cpu",
        unload_all_models=host.free,
        soft_empty_cache=lambda: None,
        throw_exception_if_processing_interrupted=host.throw,
    )
    cli_args = ModuleType("comfy.cli_args")
    cli_args.__dict__.update(args=host)
    comfy = ModuleType("comfy")
    comfy.__dict__.update(model_management=management, cli_args=cli_args)
    graph = ModuleType("comfy_execution.graph_utils")
    graph.__dict__.update(ExecutionBlocker=ExecutionBlocker)
    named = {"comfy_api": ModuleType("comfy_api"), "comfy_execution": ModuleType("comfy_execution"), "comfy": comfy}
    return named | {one.__name__: one for one in (latest, management, cli_args, graph)}


@contextmanager
def pack(name: str = "comfyui_irg_under_test") -> Iterator[tuple[Any, Host]]:
    """The pack, imported as ComfyUI imports a folder of custom nodes, and the double of its host."""
    host = Host()
    modules = _modules(host)
    before = {one: sys.modules.get(one) for one in modules}
    sys.modules.update(modules)
    try:
        spec = importlib.util.spec_from_file_location(
            name, PACK / "__init__.py", submodule_search_locations=[str(PACK)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        yield module, host
    finally:
        for one in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[one]
        for one, old in before.items():
            if old is None:
                sys.modules.pop(one, None)
            else:
                sys.modules[one] = old
