"""Tensor parallelism: the decoder's layers split over processes, applied to a built model from outside.

Attention is split by heads and the MLPs by neurons: the projections into them by columns, those out of them by rows,
whose partial sums are added up over the processes (Shoeybi et al. 2019, Megatron-LM). Everything else (embeddings,
norms, ViT, autoencoder, language head) is whole in every process.

Parts are plain tensors: PyTorch 2.13's distributed ones derive anew how a product is shared for every number of tokens,
a third of a second each.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from irg.model.network.config import DecoderConfig
from irg.model.network.unified import UnifiedModel
from irg.model.placement.processes import Processes

_EXPERTS = ("", "_moe_gen")
_INTO = [
    name
    for expert in _EXPERTS
    for name in (*(f"self_attn.{x}_proj{expert}" for x in "qkv"), f"mlp{expert}.gate_proj", f"mlp{expert}.up_proj")
]
_OUT_OF = [name for expert in _EXPERTS for name in (f"self_attn.o_proj{expert}", f"mlp{expert}.down_proj")]


def check_heads(config: DecoderConfig, world: int) -> None:
    """Raises:
    ValueError: the heads or the neurons do not divide among so many processes.
    """
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(config, name) % world:
            raise ValueError(
                f"parallel tensor: {world} processes can't share the model's {name}, {getattr(config, name)}: "
                "start a number of processes that divides it"
            )


def split_layers(model: UnifiedModel, processes: Processes) -> None:
    """Leave each process its part of every decoder layer, on its device. The model is the same in all of them.

    Raises:
        ValueError: the heads or the neurons do not divide among the processes, or a layer is quantized.
    """
    check_heads(model.config.decoder, processes.world)
    for layer in model.language_model.model.layers:
        linears = {name: layer.get_submodule(name) for name in (*_INTO, *_OUT_OF)}
        if quantized := next((name for name, linear in linears.items() if type(linear) is not nn.Linear), None):
            raise ValueError(f"parallel tensor needs weights that are not quantized; {quantized} is")
        for name in _INTO:
            _keep_part(linears[name], 0, processes)
        for name in _OUT_OF:
            _keep_part(linears[name], 1, processes)
            linears[name].register_forward_hook(_add_up)
        layer.to(processes.device)
    model.language_model.model.kv_heads //= processes.world


def _keep_part(linear: nn.Module, dimension: int, processes: Processes) -> None:
    """Of its outputs (dimension 0 of weight and bias) or of its inputs (dimension 1 of the weight)."""
    for parameter in linear.parameters():
        part = parameter.data.chunk(processes.world, dimension)[processes.rank]
        parameter.data = part.clone(memory_format=torch.contiguous_format)


def _add_up(linear: nn.Module, inputs: Any, partial: Tensor) -> Tensor:
    dist.all_reduce(partial)
    return partial
