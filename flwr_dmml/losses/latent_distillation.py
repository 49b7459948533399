"""Teach the common features of a real sample with a generated one of the same class (FedGen)."""

from torch import Tensor
from torch.nn import functional as F


def latent_distillation_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return ``KL(softmax(teacher) || softmax(student))``, averaged over the batch.

    Parameters
    ----------
    student_logits : Tensor
        Common head on the encoder's common features, ``[..., batch, classes]``.
    teacher_logits : Tensor
        Common head on generated features of the same labels, ``[..., batch, classes]``; carries no
        gradient.

    Returns
    -------
    Tensor
        ``[...]``, >= 0; 0 when student equals teacher.

    References
    ----------
    FedGen (Zhu et al., ICML 2021), the client's "latent" loss. Its use on modality-common features
    is this project's reconstruction of DMML-KD (Yin et al., IEEE TMC 2024).
    """
    student, teacher = F.log_softmax(student_logits, -1), F.log_softmax(teacher_logits.detach(), -1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
    return each.mean(dim=-1)
