"""One of several processes of tests/reasoning/test_parallel.py: ``parallel_worker.py``, writes RANK.pt.

Draws two prompts by irg-mini, guided, one loop, in both ways to share the work; writes what this process got and what
it had of the work. Then it runs ``irg generate``, as ``torchrun -m irg generate`` does.
"""

import os
import sys
from typing import Any

import torch

from irg.cli.main import main
from irg.engine.guidance_parallel import SharedBranches
from irg.reasoning.output import IRGOutput
from irg.reasoning.pipeline import IRGPipeline

PROMPTS = ["a red apple", "two cats and a blue car"]
COMMAND = ["generate", "a red apple", "--mode", "think", "--num-timesteps", "3", "--seed", "1", "--device", "cpu"]
SHORT = {"max_think_tokens": 12, "max_reflect_tokens": 12}
OPTIONS = {"rounds": 1, "stop_when_done": False, "num_timesteps": 4, "improve_num_timesteps": 3, **SHORT}


def drawn(results: list[IRGOutput]) -> dict[str, Any]:
    """Texts and images, as plain data."""
    images = [image for result in results for image in result.trajectory.images]
    return {
        "texts": [(r.trajectory.thinking, r.trajectory.reflection) for r in results],
        "images": [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in images],
    }


def run(kind: str) -> dict[str, Any]:
    """What this process got."""
    pipe = IRGPipeline.from_pretrained("mini", device="cpu", dtype=torch.float32, parallel=kind)
    model = pipe.engine.runner.model
    layer = model.language_model.model.layers[0]
    blocks: list[int] = []
    plain = SharedBranches.velocity

    def counted(self: SharedBranches, noisy_GD: torch.Tensor, times_G: torch.Tensor) -> torch.Tensor:
        blocks.append(0 if self.mine_G is None else len(self.mine_G))
        return plain(self, noisy_GD, times_G)

    SharedBranches.velocity = counted
    results = pipe(PROMPTS, seed=[5, 6], **OPTIONS)
    weight = layer.mlp_moe_gen.up_proj.weight
    SharedBranches.velocity = plain
    return {
        "texts": [(r.trajectory.thinking, r.trajectory.reflection) for r in results],
        "images": [
            torch.frombuffer(bytearray(i.tobytes()), dtype=torch.uint8) for r in results for i in r.trajectory.images
        ],
        "rows": weight.shape[0],
        "cache_heads": pipe.engine.runner.cache.heads,
        "tokens": blocks,
        "drawn_seeds": pipe._seeds(None, 3),
    }


if __name__ == "__main__":
    torch.save({kind: run(kind) for kind in ("tensor", "guidance")}, f"{os.environ['RANK']}.pt")
    sys.exit(main([*COMMAND, "--parallel", "guidance"]))
