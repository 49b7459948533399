"""A network of its own for every modality, and one that fuses copies of their encoders."""

import copy
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Modality
from .base import ModalityModel, seeded_blocks
from .by_name import ByName
from .encoders import DEFAULT_CHOICE, EncoderChoice, make_encoder
from .stacked import Linear, encode


class FusionHead(nn.Module):
    """A linear layer on concatenated features, ``h([f_1; ...; f_M]) = b + sum_m W_m f_m``.

    A modality that is missing counts as a feature of zeros, and costs nothing. There is a W_m for
    every modality of the data set: the head is the same block on devices with different sensors.
    """

    def __init__(self, modalities: Sequence[str], width: int, num_classes: int) -> None:
        super().__init__()
        layers = {m: Linear(width, num_classes, bias=False) for m in modalities}
        self.layers = ByName(layers)
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Classify features ``[batch, width]`` by modality: ``[batch, classes]``."""
        total: Tensor = reduce(torch.add, [self.layers[m](f) for m, f in features.items()])
        return total + (self.bias if self.bias.dim() == 1 else self.bias[:, None])


class ModalityNetworks(ModalityModel):
    """An encoder and a linear head for each modality, and a fusion network of several.

    The networks share no parameter: ``h_m(f_m(x_m))`` of each modality m by itself, and
    ``h([f'_1(x_1); ...; f'_M(x_M)])`` with encoders f' of its own. A device with one modality has
    no fusion network.

    A modality alone is predicted by its own network; several by the fusion network, or before it
    is trained by the mean of their networks' softmaxes.

    Parameters
    ----------
    modalities : mapping of str to Modality
        The modalities this node owns.
    every : sequence of str
        Every modality of the data set, in the same order on all nodes.
    num_classes : int
        Number of classes.
    width : int
        Length of a feature.
    choice : EncoderChoice
        Which encoder reads which kind of modality.
    seed : int
        Every block starts from numbers that depend on this and on its name only; the encoders are
        those of :class:`~flwr_dmml.models.DecomposedClassifier`, f' begins as a copy of f.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        every: Sequence[str],
        num_classes: int,
        *,
        width: int = 64,
        choice: EncoderChoice = DEFAULT_CHOICE,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.every, self.width, self.choice = tuple(every), width, choice
        self.predicts_fused = False
        """Whether the fusion network is trained, and predicts from several modalities."""
        with seeded_blocks(seed) as fresh:
            self.encoders, self.heads = ByName(), ByName()
            for name, modality in modalities.items():
                fresh(f"encoder.{name}")
                self.encoders[name] = make_encoder(modality, width, choice)
                fresh(f"head.{name}")
                self.heads[name] = Linear(width, num_classes)
            self.fuses = len(modalities) > 1
            """Whether there is a fusion network."""
            if self.fuses:
                fresh("fusion.head")
                self.fusion_head = FusionHead(every, width, num_classes)
                self.fusion_encoders = copy.deepcopy(self.encoders)

    def blocks(self) -> dict[str, nn.Module]:
        """Return the parts of the uni-modal networks, by name."""
        named: dict[str, nn.Module] = {f"encoder.{m}": f for m, f in self.encoders.items()}
        return named | {f"head.{m}": h for m, h in self.heads.items()}

    def fusion_blocks(self) -> dict[str, nn.Module]:
        """Return the parts of the fusion network by name, empty where there is none."""
        if not self.fuses:
            return {}
        encoders = {f"encoder.{m}": f for m, f in self.fusion_encoders.items()}
        return encoders | {"head": self.fusion_head}

    def begin_fusion(self) -> None:
        """Set the encoders of the fusion network to those of the uni-modal ones."""
        if self.fuses:
            self.fusion_encoders.load_state_dict(self.encoders.state_dict())

    def alone(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Classify each modality by its own network: ``[batch, classes]`` each."""
        return {m: self.heads[m](encode(self.encoders[m], x)) for m, x in inputs.items()}

    def fused(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify any non-empty subset of the modalities together: ``[batch, classes]``."""
        features = {m: encode(self.fusion_encoders[m], x) for m, x in inputs.items()}
        logits: Tensor = self.fusion_head(features)
        return logits

    def logits(
        self, inputs: Mapping[str, Tensor], subsets: Sequence[tuple[str, ...]]
    ) -> list[Tensor]:
        """Return logarithms of probabilities or logits ``[batch, classes]`` from each subset."""
        own = {m: F.softmax(logits, dim=1) for m, logits in self.alone(inputs).items()}

        def of(subset: tuple[str, ...]) -> Tensor:
            if len(subset) > 1 and self.predicts_fused:
                return self.fused({m: inputs[m] for m in subset})
            return torch.stack([own[m] for m in subset]).mean(dim=0).log()

        return [of(subset) for subset in subsets]

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Classify inputs of any non-empty subset of the modalities: ``[batch, classes]``."""
        return self.logits(inputs, [tuple(inputs)])[0]
