"""FedCMI's cross-modal distillation, and the temperature that each class is taught with."""

import torch
from torch import Tensor
from torch.nn import functional as F


def infiltration_loss(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """Return ``mean_i KL(softmax(t_i / T_i) || softmax(s_i / T_i))``, without a factor T^2.

    The paper's code has the cross-entropy, whose gradient is the same; this one is 0 where student
    and teacher agree.

    Parameters
    ----------
    student, teacher : Tensor
        Logits ``[..., n, classes]``; the teacher's carry no gradient.
    temperature : Tensor
        T of each sample, that of its class, ``[..., n]``, above 0.

    References
    ----------
    Fan et al., FedCMI, arXiv 2401.00894 (released code).
    """
    scale = temperature.unsqueeze(-1)
    target = F.softmax(teacher.detach() / scale, dim=-1)
    each = F.kl_div(F.log_softmax(student / scale, dim=-1), target, reduction="none")
    return each.sum(dim=-1).mean(dim=-1)


def class_temperatures(
    first: Tensor, second: Tensor, *, slope: float, lowest: float = 0.0
) -> Tensor:
    """Return the temperature of every class between two modalities, ``[classes]`` in (0, 1].

    With ``q_c = p1_c / p2_c`` and its mean ``q`` over the classes: ``R_c = q_c / q`` where q > 1
    (the first modality is ahead), else ``R_c = q / q_c``. A class in which the weak modality lags
    more than on average is taught sharper: ``T_c = 1 / (1 + slope ln R_c)`` where R_c > 1, else 1.

    Parameters
    ----------
    first, second : Tensor
        Mean probability of the true class by class, ``[classes]`` in [0, 1]; NaN for a class
        without samples. Where either is NaN or 0 the temperature is 1, and the class is in no mean.
    slope : float
        >= 0; 0 leaves every temperature 1. The paper's code has 2.
    lowest : float
        Bound of the temperatures in [0, 1], this project's: with a slope of 2 they fall to 0.15
        while the probabilities are still tiny.

    References
    ----------
    Fan et al., FedCMI, arXiv 2401.00894 (released code).
    """
    known = (first > 0) & (second > 0)  # False for NaN
    ratio = torch.where(known, first / second, torch.ones_like(first))
    if not bool(known.any()):
        return torch.ones_like(first)
    mean = ratio[known].mean()
    lag = ratio / mean if mean > 1 else mean / ratio
    temperature = 1 / (1 + slope * torch.log(lag.clamp(min=1.0)))
    return torch.where(known, temperature.clamp(min=lowest), torch.ones_like(first))
