"""Noisy sums of clipped per-sample gradients (DP-SGD), for the local iterations of one device."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from ..base.errors import MethodError
from ..privacy.noise import gaussian
from ..privacy.options import Mechanism
from .batch import Batch
from .optimisers import square_norms, total
from .trainee import Trainee

NUMBERS = 1 << 25
"""Gradients of samples that are held at once take no more numbers than this, or are of one."""
MIXES = (nn.modules.batchnorm._BatchNorm,)
ONE_BY_ONE = (nn.RNNBase,)
"""Layers of which vmap cannot compute all: samples go through the model in a loop."""


def check_separable(module: nn.Module) -> None:
    """Refuse a model in which the samples of a mini-batch depend on each other.

    Raises
    ------
    MethodError
        Names the layer.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, MIXES):
            raise MethodError(
                f"privacy.dp = 'sample': the layer {name} ({type(layer).__name__}) mixes the "
                "samples of a mini-batch; use GroupNorm or LayerNorm, or another encoder"
            )


class NoisyGradients:
    """The gradients of a round's iterations, with noise on every parameter that one reaches.

    ``g = ( sum_i g_i min(1, C / ||g_i||) + N(0, sigma^2 C^2) ) / b`` over the samples i of a
    mini-batch, with b the number that is expected of it: of an empty one, noise alone. By block,
    each of n parts of g_i is clipped to ``C / sqrt(n)``, so that g_i as a whole counts at most C.

    Parameters
    ----------
    learner : Learner
        Whose losses these are.
    trained : sequence of int
        The positions of the parameters that are trained.
    mechanism : Mechanism
        What is clipped, and how much noise there is.
    given : mapping of str to Tensor
        What the losses read besides a sample, see :attr:`.Batch.given`.

    References
    ----------
    Abadi et al., "Deep Learning with Differential Privacy", CCS 2016. A norm for each block:
    McMahan et al., "A General Approach to Adding Differential Privacy to Iterative Training
    Procedures", 2018.
    """

    def __init__(
        self,
        learner: Trainee,
        trained: Sequence[int],
        mechanism: Mechanism,
        given: Mapping[str, Tensor],
    ) -> None:
        self._learner, self._trained, self._how = learner, list(trained), mechanism
        self._loss = _Loss(learner, given)
        names = {id(p): name for name, p in self._loss.named_parameters()}
        self._parameters = {i: learner.flat.parameters[i] for i in self._trained}
        self._names = {i: names[id(p)] for i, p in self._parameters.items()}
        recurrent = any(isinstance(layer, ONE_BY_ONE) for layer in self._loss.modules())
        loops = recurrent or learner.settings.mixed_precision  # neither goes with vmap
        self._each = self._by_loop if loops else self._by_vmap
        self._known: dict[tuple[str, ...], list[int]] = {}

    def of(self, batch: Batch, modalities: tuple[str, ...]) -> list[Tensor | None]:
        """Return the gradients of the trained parameters; None of those that it does not reach.

        Parameters
        ----------
        batch : Batch
            Samples that were drawn independently; may be none.
        modalities : tuple of str
            What the iteration trains. It says which parameters are reached, whatever the batch has.
        """
        reached, how = self._reached(modalities), self._how
        sums = self.clipped_sum(batch, modalities)
        lengths = [self._parameters[i].numel() for i in reached]
        noise = torch.split(gaussian(sum(lengths)).to(self._learner.device), lengths)
        found: dict[int, Tensor] = {}
        for i, drawn in zip(reached, noise, strict=True):
            noisy = sums[i] + how.sigma * how.clip * drawn.view(sums[i].shape)
            found[i] = noisy / how.batch
        return [found.get(i) for i in self._trained]

    def clipped_sum(self, batch: Batch, modalities: tuple[str, ...]) -> dict[int, Tensor]:
        """Return the sum of the samples' clipped gradients, by parameter that is reached."""
        reached = self._reached(modalities)
        sums = {i: torch.zeros_like(self._parameters[i]) for i in reached}
        at_once = max(1, NUMBERS // max(1, sum(p.numel() for p in sums.values())))
        for part in batch.only(modalities).parts:
            every = torch.arange(len(part.labels), device=part.labels.device)
            for rows in torch.split(every, at_once):
                inputs = {m: x[rows] for m, x in part.inputs.items()}
                each = self._each(inputs, part.labels[rows], reached)
                for i, g in self._summed(each).items():
                    sums[i] += g
        return sums

    def _summed(self, each: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the sum of gradients ``[sample, *shape]``, scaled down; 0 for one not finite."""
        block_of = self._learner.flat.block_of
        groups: dict[str, list[int]] = {}
        for i in each:
            groups.setdefault(block_of(i) if self._how.by_block else "", []).append(i)
        most = self._how.clip / len(groups) ** 0.5
        found: dict[int, Tensor] = {}
        for own in groups.values():
            norm = total(square_norms(each[i]) for i in own).sqrt()  # [sample]
            factor = (most / norm.clamp(min=1e-30)).clamp(max=1.0)
            rows = norm.isfinite()
            sound = slice(None) if bool(rows.all()) else rows
            for i in own:
                found[i] = (factor[sound] @ each[i].flatten(1)[sound]).view(each[i].shape[1:])
        return found

    def _reached(self, modalities: tuple[str, ...]) -> list[int]:
        """Return the parameters that the loss reaches in an iteration of these modalities."""
        if modalities not in self._known:
            pool = self._learner.pool
            inputs, labels = pool.look_up(torch.tensor([pool.start]), modalities)
            with self._learner.precision():
                loss = self._loss(inputs, labels)
            wanted = list(self._parameters.values())
            found = torch.autograd.grad(loss, wanted, allow_unused=True)
            pairs = zip(self._trained, found, strict=True)
            self._known[modalities] = [i for i, g in pairs if g is not None]
        return self._known[modalities]

    def _by_vmap(
        self, inputs: Mapping[str, Tensor], labels: Tensor, reached: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the gradient of each sample's loss, ``[sample, *shape]`` by parameter."""
        own = {self._names[i]: self._parameters[i].detach() for i in reached}

        def loss(own: dict[str, Tensor], x: dict[str, Tensor], y: Tensor) -> Tensor:
            sample = {m: v[None] for m, v in x.items()}, y[None]
            value: Tensor = functional_call(self._loss, own, sample)
            return value

        each = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        with self._learner.precision():
            found = each(own, dict(inputs), labels)
        return {i: found[self._names[i]] for i in reached}

    def _by_loop(
        self, inputs: Mapping[str, Tensor], labels: Tensor, reached: Sequence[int]
    ) -> dict[int, Tensor]:
        """Return the same, a sample at a time."""
        wanted = [self._parameters[i] for i in reached]
        rows: list[list[Tensor]] = []
        for k in range(len(labels)):
            with self._learner.precision():
                loss = self._loss({m: x[k : k + 1] for m, x in inputs.items()}, labels[k : k + 1])
            own = torch.autograd.grad(loss, wanted, allow_unused=True)
            pairs = zip(wanted, own, strict=True)
            rows.append([torch.zeros_like(p) if g is None else g for p, g in pairs])
        return {
            i: torch.stack(own) for i, own in zip(reached, zip(*rows, strict=True), strict=True)
        }


class _Loss(nn.Module):
    """A device's loss of samples, as a module of all its parameters."""

    def __init__(self, learner: Trainee, given: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._of, self._given = learner.local_loss, dict(given)
        self._modules_of = nn.ModuleList(learner.flat.modules.values())

    def forward(self, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        """Return the loss of samples with their labels."""
        return self._of(Batch(inputs, labels, given=self._given))
