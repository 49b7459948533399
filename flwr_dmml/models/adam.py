"""Adam and AdamW as one function of tensors."""

from math import sqrt

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@torch.no_grad()
def adam_step(
    x: Tensor,
    g: Tensor,
    first: Tensor,
    second: Tensor,
    steps: int,
    *,
    lr: float,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> None:
    """Take one step in place, as torch's Adam does.

    It is here because torch's own imports a compiler with its first step, which takes a second or
    two in every process.

    Parameters
    ----------
    x, g : Tensor
        Parameters and their gradients, of any shape.
    first, second : Tensor
        The moments of that shape, changed in place; 0 before the first step.
    steps : int
        Steps that these parameters have taken, this one included.
    lr, weight_decay : float
        The learning rate, > 0, and the decay, >= 0.
    decoupled : bool (default: False)
        Whether the decay acts on the parameters (AdamW) instead of the gradients.

    References
    ----------
    Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015; Loshchilov and Hutter,
    "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    if weight_decay and decoupled:
        x.mul_(1 - lr * weight_decay)
    elif weight_decay:
        g = g.add(x, alpha=weight_decay)
    first.lerp_(g, 1 - BETA_1)
    second.mul_(BETA_2).addcmul_(g, g, value=1 - BETA_2)
    scale = (second.sqrt() / sqrt(1 - BETA_2**steps)).add_(EPSILON)
    x.addcdiv_(first, scale, value=-lr / (1 - BETA_1**steps))
