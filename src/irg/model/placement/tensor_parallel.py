"""Tensor parallelism: the decoder's layers split over processes, applied to a built model from outside.

Attention is split by heads and the MLPs by neurons: the projections into them by columns, those out of them by rows,
whose partial sums are added up over the processes (Shoeybi et al. 2019, Megatron-LM). Everything else (embeddings,
norms, ViT, autoencoder, language head) is whole in every process.
"""

from typing import TYPE_CHECKING

from torch import nn

from irg.model.network.config import DecoderConfig
from irg.model.network.unified import UnifiedModel
from irg.model.placement.processes import Processes

if TYPE_CHECKING:  # a second's import, which only processes that share a model need
    from torch.distributed.tensor.parallel import ParallelStyle

_INTO = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_EXPERTS = ("", "_moe_gen")


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


def layer_plan() -> "dict[str, ParallelStyle]":
    """How each module of a decoder layer is split, by its name in the layer."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

    plan: dict[str, ParallelStyle] = {}
    for expert in _EXPERTS:
        plan |= {name + expert: ColwiseParallel() for name in _INTO}
        plan |= {f"mlp{expert}.{name}": ColwiseParallel() for name in ("gate_proj", "up_proj")}
        plan |= {f"self_attn.o_proj{expert}": RowwiseParallel(), f"mlp{expert}.down_proj": RowwiseParallel()}
    return plan


def split_layers(model: UnifiedModel, processes: Processes) -> None:
    """Leave each process its part of every decoder layer, on its device. The model is the same in all of them.

    Raises:
        ValueError: the heads or the neurons do not divide among the processes, or a layer is quantized.
    """
    from torch.distributed.tensor.parallel import parallelize_module

    check_heads(model.config.decoder, processes.world)
    for layer in model.language_model.model.layers:
        plan = layer_plan()
        if quantized := next((name for name in plan if type(layer.get_submodule(name)) is not nn.Linear), None):
            raise ValueError(f"parallel tensor needs weights that are not quantized; {quantized} is")
        parallelize_module(layer, processes.mesh, plan, src_data_rank=None)  # each takes its part of what it has read
        layer.to(processes.device)  # the norms, which are whole
    model.language_model.model.kv_heads //= processes.world
