"""Train a generator against an ensemble of classifier heads, weighted by who knows which class."""

from torch import Tensor

from .cross_entropy import cross_entropies


def label_weights(mixing: Tensor, counts: Tensor) -> Tensor:
    """Return ``omega_j(y) = w_j n_j(y) / sum_i w_i n_i(y)``.

    A head that never saw class y votes noise on it: its weight there is 0.

    Parameters
    ----------
    mixing : Tensor
        Mixing weight of each head's owner, ``[heads]``, >= 0.
    counts : Tensor
        Training samples of each class at each owner, ``[heads, classes]``, >= 0. All ones when
        nodes keep their label counts private: the weights are then those of the mixing.

    Returns
    -------
    Tensor
        ``[heads, classes]``; each column sums to 1, or is all 0 where nobody holds the class.

    References
    ----------
    FedGen (Zhu et al., ICML 2021) weighs by counts; the mixing weight is this project's
    decentralised form.
    """
    votes = mixing[:, None] * counts  # [heads, classes]
    return votes / votes.sum(dim=0).clamp_min(1e-12)


def sampling_distribution(mixing: Tensor, counts: Tensor) -> Tensor:
    """Return ``r(y)`` proportional to ``sum_j w_j n_j(y)``: labels nobody near holds are not drawn.

    Parameters and their shapes are those of :func:`label_weights`; the result is ``[classes]`` and
    sums to 1.
    """
    mass = (mixing[:, None] * counts).sum(dim=0)
    return mass / mass.sum()


def ensemble_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return ``mean_i sum_j omega_j(y_i) CE(head_j(G(y_i, eps_i)), y_i)``, of one device or many.

    Parameters
    ----------
    logits : Tensor
        Every head's output on the generated features, ``[..., batch, heads, classes]``.
    labels : Tensor
        The labels the features were generated for, ``[..., batch]`` int64.
    weights : Tensor
        ``omega`` of :func:`label_weights`, ``[..., heads, classes]``.

    Returns
    -------
    Tensor
        ``[...]``, >= 0.

    References
    ----------
    FedGen (Zhu et al., ICML 2021), the generator's "teacher" loss.
    """
    losses = cross_entropies(logits, labels.unsqueeze(-1).expand(logits.shape[:-1]))
    columns = labels.unsqueeze(-2).expand(*weights.shape[:-1], labels.shape[-1])
    omega = weights.gather(-1, columns).mT  # [..., batch, heads]
    return (omega * losses).sum(dim=-1).mean(dim=-1)
