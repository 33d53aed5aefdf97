"""Muon, the schedule, the running average."""

import pytest
import torch
from torch import nn
from torch.optim import AdamW

from irg.learning.optim import Muon, belongs, build_optimizers, from_saved, orthogonalised, rate, update_average
from irg.learning.recipe import Optimizer
from irg.model.weights.checkpoint import LoadedModel


@pytest.mark.parametrize("shape", [(16, 16), (64, 32), (32, 128)])
def test_orthogonalised(shape: tuple[int, int]) -> None:
    """Singular values near 1, singular vectors kept, whatever the scale."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    out = orthogonalised(1e3 * x)
    values = torch.linalg.svdvals(out)
    assert values.shape == (3, min(shape)) and 0.3 < values.min() and values.max() < 1.7
    assert torch.allclose(out, orthogonalised(x), atol=1e-4)
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ out @ vh.mT
    assert torch.allclose(inside, torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1)), atol=1e-3)


def test_nothing_stays_nothing() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_a_muon_step() -> None:
    """The first update is the orthogonalised gradient times the rate times sqrt(max(1, M / N))."""
    weight, other = nn.Parameter(torch.zeros(8, 2)), nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    Muon([weight, other], lr=0.1).step()
    assert torch.allclose(weight, -0.1 * 2.0 * orthogonalised(weight.grad[None])[0], atol=1e-5)
    assert torch.equal(other, torch.ones(2, 2))  # no gradient, no step


def test_momentum_is_nesterov() -> None:
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([weight], lr=1.0, momentum=0.5)
    for gradient in (torch.eye(2), 3 * torch.eye(2)):
        weight.grad = gradient
        optimizer.step()
    # momentum: 0.5, then 0.5 * 0.5 + 0.5 * 3 = 1.75
    assert torch.allclose(optimizer.state[weight]["momentum"], 1.75 * torch.eye(2))


def test_who_gets_which(tiny_loaded: LoadedModel) -> None:
    """Matrices inside layers to Muon, all else to AdamW, what is frozen to nobody."""
    names = {id(p): name for name, p in tiny_loaded.model.named_parameters()}
    matrices = {name for name, p in tiny_loaded.model.named_parameters() if p.ndim == 2 and ".layers." in name}
    adamw, muon = build_optimizers(tiny_loaded.model, Optimizer(kind="muon", lr=1e-3, muon_lr=2e-2))
    of = [[names[id(p)] for g in o.param_groups for p in g["params"]] for o in (adamw, muon)]
    assert set(of[1]) == matrices and "vit_model.vision_model.encoder.layers.0.mlp.fc1.weight" in matrices
    frozen = {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}
    assert set(of[0]) == set(names.values()) - matrices - frozen
    assert [o.param_groups[0]["base_lr"] for o in (adamw, muon)] == [1e-3, 2e-2]
    assert len(build_optimizers(tiny_loaded.model, Optimizer())) == 1


def test_rates() -> None:
    recipe = Optimizer(warmup=4, cooldown=5)
    assert [rate(s, 20, recipe) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [rate(s, 20, recipe) for s in range(14, 20)] == [1.0, 1.0, 0.8, 0.6, 0.4, 0.2]
    assert [rate(s, 3, Optimizer()) for s in range(3)] == [1.0, 1.0, 1.0]
    assert rate(0, 2, Optimizer(warmup=10, cooldown=1)) == 0.1


def test_average() -> None:
    average, weights = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, -2.0])]
    update_average(average, weights, decay=0.75)
    assert average[0].tolist() == [1.5, 1.0]
    for _ in range(200):
        update_average(average, weights, decay=0.75)
    assert torch.allclose(average[0], weights[0])
    update_average(average, [torch.zeros(2)], decay=0.0)
    assert average[0].tolist() == [0.0, 0.0]


def test_moments_from_a_checkpoint() -> None:
    """Fused kernels read the number of steps on the weight's device, the others on the CPU; no kind takes another's."""
    weight, steps = nn.Parameter(torch.zeros(2, device="meta")), torch.tensor(3.0)
    plain, fused = AdamW([weight]), AdamW([weight])
    fused.defaults["fused"] = True
    assert from_saved(plain, weight, "step", steps).item() == 3.0
    assert from_saved(fused, weight, "step", steps).is_meta
    assert belongs(plain, ["step", "exp_avg", "exp_avg_sq"]) and not belongs(plain, ["momentum"])
    assert belongs(Muon([weight]), ["momentum"]) and not belongs(plain, [])
