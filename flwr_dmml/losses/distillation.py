"""Teach one model what another says of the same samples (Hinton)."""

from torch import Tensor

from .latent_distillation import latent_distillation_loss


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T^2 KL(softmax(teacher / T) || softmax(student / T))``, averaged over the batch.

    Parameters
    ----------
    student, teacher : Tensor
        Logits ``[..., batch, classes]``; the teacher's carry no gradient.
    temperature : float
        T > 0. The factor T^2 keeps the size of the gradient as T grows.

    Returns
    -------
    Tensor
        ``[...]``, >= 0; 0 when student equals teacher.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    return temperature**2 * latent_distillation_loss(student / temperature, teacher / temperature)
