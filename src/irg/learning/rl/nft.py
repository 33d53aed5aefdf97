"""DiffusionNFT (arXiv 2509.16117): the flow head learns by reward without log-probabilities, whatever the solver.

Of the velocities of the old policy and of the one being trained, two implicit policies are made, one on either side of
the old; images count towards the positive one as far as they are good, towards the negative one as far as they are bad.

Legend: M noised tokens of targets; D values per token.
"""

from torch import Tensor


def optimality(advantages: Tensor) -> Tensor:
    """How good images are among others, r = 1/2 + 1/2 clip(A, -1, 1), from 0 to 1; A = (R - mean) / Z."""
    return 0.5 + 0.5 * advantages.clamp(-1, 1)


def nft_losses(new_MD: Tensor, old_MD: Tensor, velocity_MD: Tensor, optimality_M: Tensor, beta: float) -> Tensor:
    """r |v+ - v|^2 + (1 - r) |v- - v|^2 of every token, a mean over its values, float32 [M].

    v+ = (1 - beta) old + beta new and v- = (1 + beta) old - beta new. Where new and old are equal, the gradient to new
    is 2 beta (2 r - 1) (new - v): the flow loss's own, turned round for images worse than the mean.

    Args:
        new_MD, old_MD: velocities of the policy being trained (with gradients) and of the old one, unguided.
        velocity_MD: noise - image.
        optimality_M: r of the image that each token belongs to.
        beta: distance of the implicit policies from the old one, > 0.
    """
    positive_M = ((1 - beta) * old_MD + beta * new_MD - velocity_MD).square().mean(dim=-1)
    negative_M = ((1 + beta) * old_MD - beta * new_MD - velocity_MD).square().mean(dim=-1)
    return optimality_M * positive_M + (1 - optimality_M) * negative_M
