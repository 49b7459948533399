"""What leaks, measured: membership inference on what each neighbour of a device has received.

An attacker is one honest but curious neighbour. It has the payload of one round as it arrived,
after noise and compression, and asks of a sample: was this device trained on it? The mixed model
that a run keeps in the end is another one, and would say less.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..base.errors import SettingsError, UserError
from ..base.formats import parse_json
from ..base.libraries import needed
from ..base.options import Group
from ..base.seeding import numpy_generator
from ..clients.app import own_parts
from ..clients.hosting import forget
from ..data import Samples, load_partition
from ..energy.ledger import Floats
from ..engine import load_app
from ..gossip.aggregation.mean import Mean
from ..learning.learner import Learner
from ..learning.mixing import Mixer
from ..payload.plan import Payload, Plan
from ..privacy.membership import LEVEL, Share, Success, confidence, success
from ..settings import OwnParts, RunConfig, find_parts, parse_settings
from ..tracking.checkpoints import CHECKPOINTS, Checkpoint, Checkpoints
from ..transport.sealed import SEALED

MOST = 2000
"""Samples of a kind that are taken of a device at most."""
MANY = 64
"""From so many references on, each sample has a standard deviation of its own."""
CHUNK = 500
"""Samples that are predicted at once."""
NonMembers = Literal["auto", "validation", "test"]
Attacks = Literal["threshold", "calibrated"]


class AuditError(UserError, ValueError):
    """A run that cannot be audited: says what it lacks."""


@dataclass(frozen=True)
class Attack:
    """What one device learns of another's training samples.

    Attributes
    ----------
    by, of : int
        Partition ids of the attacker, and of the device whose samples they are.
    modalities : tuple of str
        Those of which the attacker has received all blocks that a prediction needs.
    threshold : Success
        By the loss of the received model (Yeom et al., CSF 2018).
    calibrated : Success or None
        By its confidence minus the mean of the references' (Carlini et al., S&P 2022, with one
        standard deviation for all samples below :data:`MANY` references). The references have
        mixed with the device themselves: they are not quite without its samples.
    references : int
        Models of other devices that were compared with.
    """

    by: int
    of: int
    modalities: tuple[str, ...]
    threshold: Success
    calibrated: Success | None
    references: int


@dataclass(frozen=True)
class Audit:
    """Membership inference on a run.

    Attributes
    ----------
    method : str
        Of the run.
    round : int
        Whose payloads were attacked.
    non_members : str
        Which samples stood for those that were not trained on.
    devices : list of Attack
        One of each device, by the neighbour that has received most of it. The references are what
        all other devices have published.
    pairs : list of Attack
        By each neighbour of each device. The references are its own model, and what its other
        neighbours have sent it.
    """

    method: str
    round: int
    non_members: str
    devices: list[Attack]
    pairs: list[Attack]

    def of(self, kind: Attacks) -> dict[int, Success]:
        """Return the success of an attack on each device; without those where there was none."""
        found = {a.of: getattr(a, kind) for a in self.devices}
        return {p: value for p, value in found.items() if value is not None}

    def worst(self, kind: Attacks) -> int:
        """Return the device on which an attack has the highest AUC."""
        found = self.of(kind)
        return max(found, key=lambda p: found[p].auc.value)

    def mean(self, kind: Attacks, what: Literal["auc", "true_positives"]) -> Share:
        """Return the mean over devices, with an interval of Student's t over them."""
        values = [getattr(found, what).value for found in self.of(kind).values()]
        if len(values) < 2:
            return Share(values[0], 0.0, 1.0)
        with needed("scipy"):
            from scipy.stats import t
        reach = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        return Share(
            fmean(values), max(0.0, fmean(values) - reach), min(1.0, fmean(values) + reach)
        )

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON, the mean and the worst device of each attack included."""
        over = {
            kind: {
                "auc": asdict(self.mean(kind, "auc")),
                "true_positives": asdict(self.mean(kind, "true_positives")),
                "worst": self.worst(kind),
            }
            for kind in ("threshold", "calibrated")
            if self.of(kind)
        }
        return asdict(self) | {"over_devices": over}


def audit(
    run: str | Path,
    *,
    method: str = "",
    non_members: NonMembers = "auto",
    app: str | Path | None = None,
) -> Audit:
    """Attack the payloads of a run's last checkpoint, as its devices' neighbours received them.

    Parameters
    ----------
    run : str or Path
        The run folder. The data are read again, as its ``config.json`` says.
    method : str
        Of the run's methods; by default the setting ``method``.
    non_members : {"auto", "validation", "test"}
        What stands for samples that were not trained on: the device's validation samples; test
        samples with the class shares of its training samples; "auto" takes both, or validation
        samples alone where devices have people or files of their own (``partition`` "natural…" or
        "own"), as test samples of other people would tell people apart and not membership.
    app : str or Path, optional
        Folder of the run's app, if that has methods, rules or data sets of its own.

    Raises
    ------
    AuditError
        There is no payload that a neighbour could read, nobody received enough of a model to
        predict with it, or the settings cannot be read and no app is given.
    SettingsError, DataError, AppError
        The settings, the data or the app cannot be read.
    """
    forget()
    folder = Path(run).expanduser()
    config = _config(folder, app)
    name = method or config.settings.method
    if name not in config.parts.methods or not (folder / name).is_dir():
        there = ", ".join(sorted(f.parent.name for f in folder.glob("*/metrics.jsonl")))
        raise AuditError(f"{folder} has no method {name!r}; there are {there or 'none'}")
    checkpoint = _checkpoint(folder, name, config)
    return _Auditor(config, name, checkpoint, non_members).run()


def _config(folder: Path, app: str | Path | None) -> RunConfig:
    file = folder / "config.json"
    try:
        given = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise AuditError(f"{file} cannot be read, is this a run folder? {error}") from error
    if not isinstance(given, dict):
        raise AuditError(f"{file}: not a JSON object")
    own = OwnParts() if app is None else own_parts(load_app(app).client_app)
    try:
        return parse_settings({**given, "device": "cpu"}, find_parts(own), side="device")
    except SettingsError as error:
        if app is not None:
            raise
        raise AuditError(
            f"{file}: {error}\nIf the run's app has methods, rules or data sets of its own, name "
            "its folder (--app)"
        ) from error


def _checkpoint(folder: Path, method: str, config: RunConfig) -> Checkpoint:
    """Return the last checkpoint, whose payloads neighbours can read.

    Raises
    ------
    AuditError
        There is none.
    """
    if not config.parts.methods[method].communicates:
        raise AuditError(f"{method}: devices send nothing, so that neighbours learn nothing")
    found = Checkpoints(folder / method / CHECKPOINTS, 1).latest()
    if found is None:
        raise AuditError(
            f"{folder / method} has no checkpoint, which holds what devices have sent: run it with "
            "checkpoint-every above 0 and at most num-server-rounds, best a divisor of it"
        )
    if found.server_round > config.settings.num_server_rounds:
        raise AuditError(
            f"{folder / method}: its last checkpoint is of the final merge, in which nobody "
            "trains; run it with final-merge = 'off'"
        )
    published = found.about["published"].values()
    if not any(published) or any(SEALED in names for names in published):
        raise AuditError(
            f"{folder / method}: only the receivers can read its payloads (exchange.transport = "
            "'direct', or exchange.sealed); audit a simulation of the same settings: neighbours "
            "receive the same there"
        )
    return found


class _Auditor:
    """The devices of a run, and what each has of its neighbours."""

    def __init__(
        self, config: RunConfig, method: str, checkpoint: Checkpoint, non_members: NonMembers
    ) -> None:
        self._method, self._checkpoint = method, checkpoint
        settings = config.settings
        natural = settings.partition.startswith("natural") or settings.partition == "own"
        self._others = {"auto": ("validation",) if natural else ("validation", "test")}.get(
            non_members, (non_members,)
        )
        self._seed, self._nodes = settings.seed, settings.num_nodes
        self._directed = settings.make_topology().directed
        published = {
            int(p): {name: _tensor(checkpoint.array(int(p), name)) for name in names}
            for p, names in checkpoint.about["published"].items()
        }
        options = settings.partition_options()
        self._learners = {
            p: config.learner(method, load_partition(options, p)) for p in sorted(published)
        }
        self._own: dict[int, Payload] = {}
        self._heard = {p: self._received(p, published) for p in self._learners}

    def _neighbours(self, p: int) -> list[int]:
        """Return those from whom a device hears in the round."""
        edges = self._checkpoint.about["planner"]["edges"]
        found = {i for i, j, *_ in edges if j == p}
        if not self._directed:
            found |= {j for i, j, *_ in edges if i == p}
        return sorted(found & self._learners.keys())

    def _received(self, p: int, published: Mapping[int, Payload]) -> dict[int, Payload]:
        """Return the blocks that a device has received in this round, by sender, decoded."""
        learner = self._learners[p]
        learner.load_state(
            {name: _tensor(x) for name, x in self._checkpoint.nodes.get(p, {}).items()}
        )
        copies = learner.flat.copy()
        self._own[p] = {name: copies[name] for name in learner.block_names}
        near = self._neighbours(p)
        inbox = {n: published[n] for n in near}
        opened, _ = learner.compressor.decode(inbox, learner.as_sent(), p)
        if learner.settings.privacy.secure_sums:
            return self._of_sums(p, inbox)
        unicast = learner.settings.privacy.unicast
        mixer = Mixer(learner.rule, Mean(Group()), learner.flat, p, self._nodes, unicast=unicast)
        equal = dict.fromkeys(learner.block_names, (1.0, *(1.0 for _ in near)))
        plan = Plan(self._checkpoint.server_round + 1, 1, neighbours=tuple(near), weights=equal)
        found: dict[int, Payload] = {n: {} for n in near}
        for block in learner.block_names:
            for n, vector in mixer.models(block, plan, opened).items():
                if block in self._learners[n].block_names:
                    found[n][block] = vector.flatten()
        return found

    def _of_sums(self, p: int, inbox: Mapping[int, Payload]) -> dict[int, Payload]:
        """Return the mean of the models whose sum a device has received, for each that is in it."""
        sums = self._learners[p].sums(dict(inbox), self._checkpoint.server_round).found
        found: dict[int, Payload] = {n: {} for n in inbox}
        for block, (own, total) in sums.items():
            for n in inbox:
                if block in self._learners[n].block_names:
                    found[n][block] = total / (1 - own)
        return found

    def _usable(self, p: int, blocks: Payload) -> tuple[str, ...]:
        """Return of which modalities a device's model can be used, given some of its blocks."""
        learner = self._learners[p]
        of = {block: learner.modality_of(block) for block in learner.block_names}
        if any(block not in blocks for block, m in of.items() if not m):
            return ()
        lacking = {m for block, m in of.items() if block not in blocks}
        return tuple(m for m in learner.partition.modalities if m not in lacking)

    def run(self) -> Audit:
        """Attack every device, by each of its neighbours."""
        devices: list[Attack] = []
        pairs: list[Attack] = []
        for p in self._learners:
            hears = {v: self._heard[v][p] for v in self._learners if p in self._heard[v]}
            seen = {v: self._usable(p, blocks) for v, blocks in hears.items()}
            target = _Target(self._learners, p, self._others, self._seed)
            seen = {v: modalities for v, modalities in seen.items() if target.has(modalities)}
            if not seen:
                continue
            best = max(seen, key=lambda v: (len(seen[v]), -v))
            published = {k: self._most(k) for k in self._learners if k != p}
            devices.append(self._attack(target, best, seen[best], published))
            for v, modalities in seen.items():
                near = {k: blocks for k, blocks in self._heard[v].items() if k != p}
                pairs.append(self._attack(target, v, modalities, near | {v: self._own[v]}))
        if not devices:
            raise AuditError(
                f"{self._method}, round {self._checkpoint.server_round}: no device has received "
                "blocks with which a neighbour's samples can be classified, or there are no "
                f"{' and '.join(self._others)} samples to compare with"
            )
        told = " and ".join(self._others)
        return Audit(self._method, self._checkpoint.server_round, told, devices, pairs)

    def _most(self, p: int) -> Payload:
        """Return what the neighbour of a device has that has received most of its model."""
        found = [self._heard[v][p] for v in self._learners if p in self._heard[v]]
        return max(found, key=lambda blocks: len(self._usable(p, blocks)), default={})

    def _attack(
        self,
        target: "_Target",
        by: int,
        modalities: tuple[str, ...],
        references: Mapping[int, Payload],
    ) -> Attack:
        own = target.confidences(target.device, self._heard[by][target.device], modalities)
        others = [
            target.confidences(k, blocks, modalities)
            for k, blocks in references.items()
            if {*modalities} <= {*self._usable(k, blocks)}
        ]
        calibrated: Success | None = None
        if others:
            each = np.stack(others)  # [reference, sample]
            score = own - each.mean(axis=0)
            if len(others) >= MANY:
                score = score / np.maximum(each.std(axis=0), 1e-6)
            calibrated = target.success(score, modalities)
        found = target.success(own, modalities)
        return Attack(by, target.device, modalities, found, calibrated, len(others))


class _Target:
    """A device that is attacked: its training samples, and others that are like them."""

    def __init__(
        self, learners: Mapping[int, Learner], device: int, others: Sequence[str], seed: int
    ) -> None:
        self.device, self._learners = device, learners
        partition, rng = learners[device].partition, numpy_generator(seed, "audit", device)
        members, self._others = partition.train, list[Samples]()
        if "validation" in others:
            self._others.append(partition.validation)
        if "test" in others:
            rows = alike(rng, members.labels.numpy(), partition.test.labels.numpy())
            self._others.append(partition.test.subset(torch.from_numpy(_some(rng, rows))))
        known = torch.cat([samples.labels for samples in self._others])
        compared = torch.isin(members.labels, known).nonzero().flatten().numpy()
        self._members = members.subset(torch.from_numpy(_some(rng, compared)))
        self._cached: dict[tuple[int, int, tuple[str, ...]], Floats] = {}

    def has(self, modalities: tuple[str, ...]) -> bool:
        """Return whether there are samples of both kinds with these modalities."""
        members, *others = map(len, self._parts(modalities))
        return bool(modalities and members and sum(others))

    def _parts(self, modalities: tuple[str, ...]) -> Iterator[Samples]:
        """Yield members, then the others, with those samples alone that have all modalities."""
        for samples in (self._members, *self._others):
            if samples.present and modalities:
                has = torch.stack([samples.present[m] for m in modalities]).all(dim=0)
                samples = samples.subset(has.nonzero().flatten())
            yield samples

    def success(self, scores: Floats, modalities: tuple[str, ...]) -> Success:
        """Return how well scores of all samples tell members from others."""
        members = len(next(self._parts(modalities)))
        return success(scores[:members], scores[members:])

    @torch.no_grad()
    def confidences(self, k: int, blocks: Payload, modalities: tuple[str, ...]) -> Floats:
        """Return what device k's model is sure of, with these blocks: of members, then others."""
        key = k, id(blocks), modalities
        if key not in self._cached:
            learner = self._learners[k]
            learner.load_state(blocks)
            learner.model.eval()
            learner.flat.attach()
            found: list[Floats] = []
            for samples in self._parts(modalities):
                inputs = {m: samples.inputs[m] for m in modalities}
                for start in range(0, len(samples), CHUNK):
                    part = {m: x[start : start + CHUNK] for m, x in inputs.items()}
                    (scores,) = learner.scores(part, [modalities])
                    found.append(confidence(scores, samples.labels[start : start + CHUNK]))
            self._cached[key] = np.concatenate(found)
        return self._cached[key]


def alike(
    rng: np.random.Generator, members: np.ndarray[Any, Any], others: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the most rows of ``others`` whose class shares are those of ``members``.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws which.
    members, others : array
        Labels, int64. Classes of which ``others`` has none are passed over.
    """
    classes, counts = np.unique(members, return_counts=True)
    rows = {c: np.flatnonzero(others == c) for c in classes}
    there = [(c, n) for c, n in zip(classes, counts, strict=True) if len(rows[c])]
    if not there:
        return np.zeros(0, np.int64)
    factor = min(len(rows[c]) / n for c, n in there)
    drawn = [rng.choice(rows[c], int(factor * n + 1e-9), replace=False) for c, n in there]
    return np.sort(np.concatenate(drawn))


def _some(rng: np.random.Generator, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return :data:`MOST` of the rows at most."""
    return rows if len(rows) <= MOST else np.sort(rng.choice(rows, MOST, replace=False))


def _tensor(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.array(array))
