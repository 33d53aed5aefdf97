"""Images from fixed prompts while a model trains, with the averaged weights.

The main process samples alone, with a plain model: sharded weights are gathered once, tensor by tensor, the others
wait. (If all sampled with the sharded model, a token on which two of them differ would leave them waiting for each
other's layers for ever.) Whole tensors are shared with the run, not copied.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from irg.engine.engine import Engine
from irg.engine.runner import Runner
from irg.learning import parallel
from irg.learning.recipe import Samples
from irg.learning.trackers import Trackers
from irg.model.network.lora import LoraConfig, add_adapters
from irg.model.network.unified import UnifiedModel
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGOutput, IRGPipeline


@torch.no_grad()
def averaged_model(
    model: UnifiedModel,
    averages: Mapping[nn.Parameter, Tensor],
    adapter: LoraConfig | None,
    ranks: parallel.Ranks,
    dtype: torch.dtype,
    everywhere: bool = False,
) -> UnifiedModel | None:
    """The model with averaged weights, unsharded, in the main process; None in the others, which all must call this.

    Args:
        averages: by trained parameter.
        dtype: of the gathered copies of sharded weights: what the run computes in.
        everywhere: make it in all processes.
    """
    parallel.reshard(model)
    with torch.device("meta"):
        plain = UnifiedModel(model.config)
        if adapter is not None:
            add_adapters(plain, adapter)
    made: dict[nn.Parameter, nn.Parameter] = {}
    problem: torch.OutOfMemoryError | None = None
    here = ranks.main or everywhere
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in made:  # a tied head is gathered once
                value = averages.get(parameter, parameter.detach())
                if isinstance(value, DTensor):
                    value = value.full_tensor()  # all ranks together, also after one has failed
                try:
                    low = isinstance(parameter, DTensor) and adapter is None and here and problem is None
                    value = value.to(dtype) if low else value
                except torch.OutOfMemoryError as error:
                    problem = error
                kept = here and problem is None
                made[parameter] = nn.Parameter(value if kept else torch.empty(0), requires_grad=False)
            plain.get_submodule(name)._parameters[leaf] = made[parameter]
    if problem is not None:
        raise problem
    return plain if here else None


def draw(
    model: UnifiedModel, loaded: LoadedModel, tokenizer: TextTokenizer, profile: Profile, samples: Samples
) -> dict[str, IRGOutput]:
    """Run every prompt; name -> result.

    Raises:
        ValueError: a prompt or a setting is not usable.
    """
    engine = Engine(Runner(model, loaded.autoencoder), tokenizer, profile.draft_texts)
    pipe = IRGPipeline(engine, profile, profile.name)
    outputs = pipe(list(samples.prompts), seed=samples.seed, **samples.settings)
    return {f"{i:02d}": output for i, output in enumerate(outputs)}


def save(outputs: Mapping[str, IRGOutput], folder: Path, step: int, trackers: Trackers) -> None:
    """Write results to ``folder`` and send their images to the trackers. A full disk costs no more than a result."""
    for name, output in outputs.items():
        try:
            output.save(folder / name, overwrite=True)
        except (OSError, ValueError) as error:
            warnings.warn(f"cannot write {folder / name}: {error}; training goes on", stacklevel=2)
        if output.image is not None:
            trackers.image(step, f"sample/{name}", output.image)


def failure(error: BaseException, step: int) -> str:
    """Why there are no samples of a step, in one line."""
    reason: Any = " ".join(str(error).split()) or type(error).__name__
    return f"cannot draw samples at step {step} ({type(error).__name__}: {reason}); training goes on"
