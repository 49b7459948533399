"""Settings of a device: its data, model and training (:class:`DeviceSettings`)."""

from math import cos, inf, pi
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator

from ..base.machine import expanded
from ..base.options import Group
from ..data import LoadOptions, PartitionOptions
from ..data.options import (
    AudioOptions,
    ImageOptions,
    MissingOptions,
    PublicOptions,
    Scheme,
    SeriesOptions,
    Standardise,
)
from ..energy.options import AllocationOptions, EnergyOptions
from ..gossip.aggregation.rule import ASSUMED
from ..gossip.attacks import AttackOptions
from ..models import EncoderChoice, Fusion
from ..payload.coding import Precision
from ..payload.options import ExchangeOptions
from ..privacy.options import PrivacyOptions
from .calibration import TestFusion
from .label_shares import Correction
from .serving import ServeChoice

DIVIDED_BY = (
    "dataset", "snr-db", "image-visible", "standardise", "partition", "alpha", "samples-per-node",
    "validation-fraction", "modality-pattern", "modality-shares", "seed",
)  # fmt: skip
DIVIDED_BY_GROUPS = ("audio.", "image.", "series.", "missing.")


def divides(key: str, dataset: str) -> bool:
    """Return whether a setting decides what a device has of a data set."""
    return key in DIVIDED_BY or key.startswith((*DIVIDED_BY_GROUPS, f"{dataset}."))


def _share(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0 <= float(str(value)) <= 1):
        return value
    raise ValueError('must be "auto" or a number from 0 to 1')


def _weight(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0 <= float(str(value)) < inf):
        return value
    raise ValueError('must be "auto" or a number, at least 0')


def _liars(value: object) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (0 <= float(str(value)) < 1 or float(str(value)) in range(1, 10**6)):
        return float(str(value))
    raise ValueError("must be a share of the neighbours below 1, or a whole number of them")


def _switch(value: object) -> object:
    if value == "auto" or isinstance(value, bool):
        return value
    raise ValueError('must be "auto", true or false')


def _shares(text: str) -> list[float]:
    """Read ``"0.6,0.8"``: numbers between 0 and 1."""
    shares = [float(item) for item in text.split(",")]
    if not all(0 < share < 1 for share in shares):
        raise ValueError(f"'{text}' holds a number that is not between 0 and 1")
    return shares


FusionChoice = Literal["auto"] | Fusion
"""Of a method, "auto" is detached where all modalities are vectors, else additive."""


class Choices(Protocol):
    """What a method chooses where settings say "auto"."""

    stagger: float
    allocation: str
    label_correction: Correction
    modality_loss: float
    fusion: FusionChoice
    input_noise: float
    exchange_precision: Precision


def choices_of(method: Choices) -> dict[str, Any]:
    """Return what a method chooses, by the keys of the settings."""
    return {
        "stagger": method.stagger,
        "allocation.rule": method.allocation,
        "modality-loss": method.modality_loss,
        "fusion": method.fusion,
        "input-noise": method.input_noise,
        "label-correction": method.label_correction,
        "exchange.precision": method.exchange_precision,
    }


class DeviceSettings(Group):
    """The part of a run's settings that its devices go by: their data, models and training."""

    method: str = Field("dmml-kd", description="method to train with (see --list-methods)")
    gossip: str = Field(
        "auto", description="how parameters move between neighbours; auto: the method's own rule"
    )
    aggregation: str = Field(
        "mean", description="what a device makes of its neighbours' copies of a block"
    )
    assume_liars: Annotated[float, BeforeValidator(_liars)] = Field(
        ASSUMED,
        description="maximum of liars among a device's neighbours: a share below 1, or a number",
    )
    gossip_normalise: Annotated[Literal["auto"] | bool, BeforeValidator(_switch)] = Field(
        "auto",
        description="scale each device's progress in a round to the mean number of iterations; "
        "auto: true",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of everything random in the run")
    num_nodes: int = Field(12, ge=1, description="devices to wait for before round 1")
    num_server_rounds: int = Field(30, ge=1, description="rounds of mix, train and publish")
    local_iterations: int = Field(
        20, ge=1, description="mini-batches that a device trains per round"
    )
    stagger: Annotated[Literal["auto"] | float, BeforeValidator(_share)] = Field(
        "auto", description="share of joint iterations split into solo ones; auto: the method's"
    )
    speed_metric: Literal["conditional", "relative", "cumulative", "cosine", "path"] = Field(
        "conditional", description="how the training speed of a modality is measured"
    )
    modality_loss: Annotated[Literal["auto"] | float, BeforeValidator(_weight)] = Field(
        "auto",
        description="weight of each modality's own cross-entropy in a joint iteration; auto: the "
        "method's",
    )
    fusion: FusionChoice = Field(
        "auto",
        description="how several modalities predict: by the sum of their heads, or detached, by "
        "heads that do not train the encoders; auto: the method's",
    )
    test_fusion: TestFusion = Field(
        "trained",
        description="how modalities are combined in predictions: as trained, or each one's own, "
        "calibrated on validation samples and weighted by this",
    )
    serve: ServeChoice = Field(
        "mixed",
        description="model that a device predicts by: mixed, its own as last trained, their mean, "
        "or the best of them on validation samples",
    )
    input_noise: Annotated[Literal["auto"] | float, BeforeValidator(_weight)] = Field(
        "auto",
        description="noise on vectors in training, in standard deviations of their columns; auto: "
        "the method's",
    )

    label_correction: Literal["auto", "network", "uniform", "off"] = Field(
        "auto",
        description="correct losses for label skew, against the network's or equal shares; "
        "auto: the method's",
    )

    dataset: str = Field(
        "digits", description="digits, av-digits, mnist, cifar10, or a data set of your own"
    )
    data_path: str = Field("", description="folder of the data set, where it needs one")
    data_cache: bool = Field(
        True, description="keep what has been read and transformed (flwr-dmml cache shows it)"
    )
    standardise: Standardise = Field(
        "off",
        description="auto: zero mean and unit variance for each channel of numbers, by the "
        "training samples",
    )
    snr_db: float = Field(0.0, ge=-40, le=80, description="signal-to-noise ratio of the audio, dB")
    image_visible: float = Field(
        1.0, gt=0, le=1, description="share of an image's rows, from the top, that is visible"
    )
    partition: Scheme = Field(
        "dirichlet",
        description="how samples are divided; natural-dirichlet: those of a person over "
        "several devices; own: each device has those of its data-path",
    )
    alpha: float = Field(0.3, gt=0, description="Dirichlet concentration: small is more non-IID")
    samples_per_node: int = Field(0, ge=0, description="samples per device; 0: divide all")
    validation_fraction: float = Field(
        0.1, ge=0, lt=1, description="share of a device's samples held out for its validation"
    )
    modality_pattern: str = Field(
        "audio,image,audio+image",
        description="sensors of devices 0, 1, 2, ..., cycled; auto: what their samples have",
    )
    modality_shares: str = Field(
        "", description="instead of a pattern: 'audio=0.5,image=0.2,audio+image=0.3'"
    )

    optimizer: Literal["sgd", "adam", "adamw"] = Field("sgd", description="local optimiser")
    learning_rate: float = Field(0.05, gt=0, description="learning rate of round 1")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (sgd)")
    weight_decay: float = Field(0.0, ge=0, description="weight decay")
    clip_norm: float = Field(5.0, ge=0, description="clip the gradient norm to this; 0: off")
    lr_schedule: Literal["constant", "cosine", "step"] = Field(
        "constant", description="over rounds: constant, cosine to 0, or x0.1 at lr-milestones"
    )
    lr_milestones: str = Field(
        "0.8", description="shares of the rounds after which step multiplies by 0.1: '0.6,0.8'"
    )
    lr_warm_up: float = Field(
        0.0, ge=0, lt=1, description="share of the rounds in which the rate rises to its full value"
    )
    batch_size: int = Field(32, ge=1, description="samples of a mini-batch")

    image_encoder: Literal["conv", "conv3", "mlp", "resnet20", "resnet18", "tiny"] = Field(
        "conv", description="encoder of images: two, three or no convolutions, a ResNet, or small"
    )
    audio_encoder: Literal["conv", "resnet18", "tiny"] = Field(
        "conv", description="encoder of spectrograms: two convolutions, a ResNet-18, or small"
    )
    series_encoder: Literal["conv1d", "gru", "tiny"] = Field(
        "conv1d", description="encoder of time series and sequences"
    )
    vector_encoder: Literal["mlp", "tiny"] = Field("mlp", description="encoder of feature vectors")
    encoder_weights: str = Field(
        "", description="file of weights with torchvision's names that every resnet18 starts from"
    )
    common_dim: int = Field(32, ge=1, description="length of the modality-common features")
    specific_dim: int = Field(32, ge=1, description="length of the modality-specific features")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (a GPU when there is one), cpu, cuda, cuda:1",
    )
    mixed_precision: bool = Field(
        False, description="compute losses in bfloat16 where torch does; parameters stay float32"
    )
    exact: bool = Field(
        False, description="compute every device by itself, with torch's own layers and losses"
    )
    report_classes: bool = Field(
        True,
        description="devices tell how many samples of each class they have, for the report; not "
        "under privacy.dp",
    )
    torch_threads: int = Field(1, ge=1, description="torch threads of a device's training")
    couriers: Literal["auto", "off", "forward", "average"] = Field(
        "auto",
        description="forward: devices carry blocks between owners that are not linked; "
        "average: they send the mean of the blocks; auto: the method's choice",
    )

    keep_models: Annotated[Literal["auto"] | bool, BeforeValidator(_switch)] = Field(
        "auto",
        description="keep every device's evaluated model as files; auto: in a simulation, if all "
        "take up to 1 GiB",
    )
    keep_best: bool = Field(
        False, description="keep the model of the highest validation accuracy as well"
    )

    energy: EnergyOptions = EnergyOptions()
    allocation: AllocationOptions = AllocationOptions()
    public: PublicOptions = PublicOptions()
    missing: MissingOptions = MissingOptions()
    audio: AudioOptions = AudioOptions()
    image: ImageOptions = ImageOptions()
    series: SeriesOptions = SeriesOptions()
    exchange: ExchangeOptions = ExchangeOptions()
    attack: AttackOptions = AttackOptions()
    privacy: PrivacyOptions = PrivacyOptions()

    _of_dataset: Group | None = PrivateAttr(None)  # the data set's own options

    def with_dataset(self, own: Group | None) -> Self:
        """Return the settings with the options of the data set's own."""
        settings = self.model_copy()
        settings._of_dataset = own
        return settings

    @field_validator("lr_milestones")
    @classmethod
    def _readable(cls, text: str) -> str:
        try:
            _shares(text)
        except ValueError as error:
            raise ValueError(f"{error}; give shares of the rounds, e.g. '0.6,0.8'") from error
        return text

    @property
    def data_folder(self) -> str:
        """``data_path`` with ``~`` expanded."""
        return expanded(self.data_path)

    @property
    def encoder_choice(self) -> EncoderChoice:
        """The encoder of each kind of modality."""
        return EncoderChoice(
            image=self.image_encoder,
            audio=self.audio_encoder,
            series=self.series_encoder,
            vector=self.vector_encoder,
            weights=expanded(self.encoder_weights),
        )

    def partition_options(self) -> PartitionOptions:
        """Return what the data layer needs to make any device's part of the data."""
        return PartitionOptions(
            dataset=self.dataset,
            load=LoadOptions(
                path=self.data_folder,
                snr_db=self.snr_db,
                image_visible=self.image_visible,
                audio=self.audio,
                image=self.image,
                series=self.series,
                seed=self.seed,
                cache=self.data_cache,
                standardise=self.standardise,
                own=self._of_dataset,
            ),
            num_nodes=self.num_nodes,
            scheme=self.partition,
            alpha=self.alpha,
            samples_per_node=self.samples_per_node,
            validation_fraction=self.validation_fraction,
            modality_pattern="" if self.modality_shares else self.modality_pattern,
            modality_shares=self.modality_shares,
            missing=self.missing,
            seed=self.seed,
        )

    def of_method(self, method: Choices) -> Self:
        """Return the settings with a method's own choices where they say "auto"."""
        own: dict[str, dict[str, Any]] = {"": {}}  # by group
        choices = choices_of(method)
        if self.privacy.on:  # both go by all of a device's samples
            choices |= {"label-correction": "off", "input-noise": 0.0}
        for key, choice in choices.items():
            group, _, name = key.replace("-", "_").rpartition(".")
            if getattr(getattr(self, group) if group else self, name) == "auto":
                own.setdefault(group, {})[name] = choice
        changed = own.pop("")
        if changed.get("fusion", self.fusion) == "detached" and "modality_loss" in changed:
            changed["modality_loss"] = changed["modality_loss"] or 1.0  # or nothing trains encoders
        groups = {name: getattr(self, name).model_copy(update=new) for name, new in own.items()}
        return self.model_copy(update=changed | groups)

    @property
    def stagger_share(self) -> float:
        """``stagger`` as a number; 0, plain joint iterations, where no method has chosen."""
        return 0.0 if self.stagger == "auto" else self.stagger

    @property
    def modality_weight(self) -> float:
        """``modality-loss`` as a number; 0 where no method has chosen."""
        return 0.0 if self.modality_loss == "auto" else self.modality_loss

    @property
    def noise(self) -> float:
        """``input-noise`` as a number; 0 where no method has chosen."""
        return 0.0 if self.input_noise == "auto" else self.input_noise

    @property
    def normalises(self) -> bool:
        """``gossip-normalise`` as a boolean."""
        return self.gossip_normalise is not False

    def learning_rate_at(self, server_round: int, num_rounds: int = 0) -> float:
        """Return the learning rate of a round (1-based) under ``lr-schedule``.

        ``num_rounds`` is that of the run; 0 takes ``num-server-rounds``.
        """
        num_rounds = num_rounds or self.num_server_rounds
        done = (server_round - 1) / num_rounds  # in [0, 1)
        rate = self.learning_rate
        if self.lr_schedule == "cosine":
            rate *= 0.5 * (1 + cos(pi * done))
        if self.lr_schedule == "step":
            rate *= 0.1 ** sum(done >= milestone for milestone in _shares(self.lr_milestones))
        growing = round(self.lr_warm_up * num_rounds)
        return rate * min(1.0, server_round / (growing + 1))
