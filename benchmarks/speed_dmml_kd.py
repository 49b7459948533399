"""The speed benchmark's quickstart: DMML-KD on this package, and in a bare loop written by hand.

Both train the quickstart's devices, models and losses, with its seeds: the same samples, batches
and order of joint and solo steps, the same draws of labels and noise. To compare like with like
devices are on mains power and linked by wire, every modality is trained ``local-iterations`` times
a round, and nothing is evaluated but the last models. The bare loop is torch's own layers and
optimisers, one device after another; it keeps no messages, training speeds or records. Its losses
are the package's but for rounding: of round 1 to 1e-7 on nearly all devices, and ``speed.py`` asks
for two per cent over all rounds, and five points of the last accuracy.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from cases.common import PLAIN
from speed_app import Clock
from torch import Tensor, nn
from torch.nn import functional as F

from flwr_dmml.base.seeding import derive_seed, torch_generator
from flwr_dmml.data import Partition, load_partition
from flwr_dmml.engine import FlowerApp, load_app, run_app
from flwr_dmml.settings import find_parts, parse_settings

COMMON, STAGGER = 32, 0.5
NOISE, HIDDEN = 32, 128  # of the generator


@dataclass(frozen=True)
class Trained:
    """When the run began, when rounds ended, and what it came to.

    ``ended`` leaves out what is not a round like the others: the first, and a closing one.
    """

    begun: float
    ended: Sequence[float]
    losses: Sequence[float]
    accuracy: float


def quickstart(nodes: int, rounds: int, run_dir: str = "") -> tuple[FlowerApp, dict[str, Any]]:
    """Return the app, and its run config for this benchmark."""
    app = load_app(Path(__file__).parents[1] / "examples" / "quickstart")
    changed = {
        "num-nodes": nodes,
        "num-server-rounds": rounds,
        "compare-with": "",
        "stagger": STAGGER,
        "evaluate-every": rounds,
        "checkpoint-every": 0,
        "device": "cpu",
        "run-dir": run_dir,
        "energy.battery-share": 0.0,
        "allocation.rule": "uniform",
        "wireless.enabled": False,
        "gossip": "dpsgd",
        **PLAIN,
    }
    return app, app.run_config | changed


def package(nodes: int, rounds: int, workers: int) -> Trained:
    """Run the quickstart in this process, or on workers."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        app, config = quickstart(nodes, rounds, folder)
        run_app(app, nodes, config, workers=workers, trackers=[clock])
    losses = [record.train_loss or 0.0 for record in clock.records]
    accuracy = clock.records[-1].accuracy or 0.0
    return Trained(clock.begun, clock.ended[:-1], losses, accuracy)


# ---- the bare loop ------------------------------------------------------------------------------


def encoder(shape: Sequence[int]) -> nn.Sequential:
    """Return the small convolutional encoder: common features, then specific ones."""
    channels, side = shape[0], min(shape[1:])
    layers: list[nn.Module] = []
    for width in (8, 16):
        stride = 2 if side >= 8 else 1
        side //= stride
        conv = nn.Conv2d(channels, width, kernel_size=5, stride=stride, padding=2)
        layers += [conv, nn.GroupNorm(width // 4, width), nn.ReLU()]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 16, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(64, 2 * COMMON))


class Generator(nn.Module):
    """A feature of a class, from noise."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.layers = nn.Sequential(
            nn.Linear(NOISE + classes, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, COMMON),
        )

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        """Return features ``[batch, COMMON]``."""
        features: Tensor = self.layers(torch.cat([noise, F.one_hot(labels, self.classes)], dim=1))
        return features


class Device:
    """A device: samples, a model in blocks, a generator; ``o`` are the method's options."""

    def __init__(self, index: int, partition: Partition, config: Mapping[str, Any]) -> None:
        self.index, self.seed, self.config = index, int(config["seed"]), config
        own = {k: v for k, v in config.items() if k.startswith("dmml-kd.")}
        self.o: dict[str, float] = {k.removeprefix("dmml-kd."): v for k, v in own.items()}
        self.owned, classes = partition.modalities, partition.num_classes
        self.x, self.y = partition.train.inputs, partition.train.labels
        self.test, self.truth = partition.test.inputs, partition.test.labels
        self.counts = torch.bincount(self.y, minlength=classes).float()
        kinds: dict[str, Callable[[], nn.Module]] = {
            "head.common": partial(nn.Linear, COMMON, classes)
        }
        for m in self.owned:
            kinds[f"encoder.{m}"] = partial(encoder, partition.source_modalities[m].shape)
            kinds[f"head.{m}"] = partial(nn.Linear, COMMON, classes, bias=False)
        kinds["generator"] = partial(Generator, classes)
        self.blocks: dict[str, Any] = {}
        for name, make in kinds.items():
            torch.manual_seed(derive_seed(self.seed, "init", name))
            self.blocks[name] = make()
        self.head, self.generator = self.blocks["head.common"], self.blocks["generator"]
        blocks = [block for name, block in self.blocks.items() if name != "generator"]
        self.parameters = [p for block in blocks for p in block.parameters()]

    def rng(self, purpose: str, server_round: int) -> torch.Generator:
        """Return the package's generator of this purpose."""
        return torch_generator(self.seed, purpose, self.index, server_round)

    def encode(self, x: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return common and specific features of each modality."""
        encoded = {m: self.blocks[f"encoder.{m}"](x[m]) for m in x}
        return {m: (z[:, :COMMON], z[:, COMMON:]) for m, z in encoded.items()}

    def fuse(self, features: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """Return logits from all modalities that are there."""
        commons = [common for common, _ in features.values()]
        logits: Tensor = self.head(sum(commons) / len(commons))
        for m, (_, specific) in features.items():
            logits = logits + self.blocks[f"head.{m}"](specific)
        return logits

    @torch.no_grad()
    def accuracy(self) -> float:
        """Return the share of the test samples that are classified correctly."""
        classes = self.fuse(self.encode(self.test)).argmax(dim=1)
        return (classes == self.truth).float().mean().item()


def orthogonality(common: Tensor, specific: Tensor) -> Tensor:
    """Return how much common and specific features vary together (MISA)."""
    unit = []
    for x in (common, specific):
        centred = x - x.mean(dim=0)
        unit.append(centred / (centred.norm(dim=1, keepdim=True) + 1e-6))
    together: Tensor = unit[0].T @ unit[1]
    return together.square().mean()


def diversity(noise: Tensor, features: Tensor) -> Tensor:
    """Return FedGen's diversity loss."""
    apart = (noise[:, None] - noise[None]).square().mean(dim=2)
    moved = (features[:, None] - features[None]).abs().mean(dim=2)
    return torch.exp(-(apart * moved).mean())


def loss_of(
    device: Device,
    x: Mapping[str, Tensor],
    y: Tensor,
    guidance: float,
    near: Tensor,
    rng: torch.Generator,
) -> Tensor:
    """Return DMML-KD's loss of a mini-batch; ``near`` are the shares of classes around here."""
    o, features = device.o, device.encode(x)
    n = len(features)
    loss = F.cross_entropy(device.fuse(features), y)
    logits = [device.head(common) for common, _ in features.values()]
    loss = loss + o["common-weight"] * sum(F.cross_entropy(f, y) for f in logits) / n
    apart = sum(orthogonality(*pair) for pair in features.values()) / n
    loss = loss + o["orthogonality-weight"] * apart
    if n > 1:
        pairs = [(a - b).abs().mean() for (a, _), (b, _) in combinations(features.values(), 2)]
        loss = loss + o["similarity-weight"] * sum(pairs) / len(pairs)
    if guidance:
        drawn = torch.multinomial(near, len(y), replacement=True, generator=rng)
        with torch.no_grad():
            made = device.generator(drawn, torch.rand(len(y), NOISE, generator=rng))
            of_own = device.generator(y, torch.rand(len(y), NOISE, generator=rng))
            teacher = F.log_softmax(device.head(of_own), dim=1)
        loss = loss + guidance * F.cross_entropy(device.head(made), drawn)
        for f in logits:
            student = F.log_softmax(f, dim=1)
            kl = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
            loss = loss + guidance * kl / n
    return loss


def train_generator(
    generator: Generator,
    heads: Sequence[Sequence[Tensor]],
    omega: Tensor,
    near: Tensor,
    o: Mapping[str, float],
    rng: torch.Generator,
) -> None:
    """Train a generator against heads (weight and bias), with their say in each class."""
    weight = torch.cat([w.detach() for w, _ in heads])  # [heads * classes, COMMON]
    bias = torch.cat([b.detach() for _, b in heads])
    decay, size = o["generator-weight-decay"], int(o["generator-batch-size"])
    optimizer = torch.optim.Adam(generator.parameters(), lr=o["generator-lr"], weight_decay=decay)
    for _ in range(int(o["generator-steps"])):
        drawn = torch.multinomial(near, size, replacement=True, generator=rng)
        noise = torch.rand(size, NOISE, generator=rng)
        made = generator(drawn, noise)
        logits = F.linear(made, weight, bias).view(size, len(heads), -1)  # [batch, heads, classes]
        targets = drawn[:, None].expand(-1, len(heads))
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        loss = (omega[:, drawn].T * losses).sum() / size
        loss = loss + o["diversity-weight"] * diversity(noise, made)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def order_of_steps(owned: Sequence[str], count: int, seed: int) -> list[Sequence[str]]:
    """Return which modalities each step trains: half of the joint steps are split."""
    solo = round(STAGGER * count) if len(owned) > 1 else 0
    steps = []
    for kind, n in {tuple(owned): count - solo, **{(m,): solo for m in owned if solo}}.items():
        rng = torch_generator(seed, *kind)
        steps += [(at, kind) for at in torch.rand(n, generator=rng, dtype=torch.double).tolist()]
    return [kind for _, kind in sorted(steps)]


def weights_of(owners: Sequence[int], near: Mapping[int, set[int]]) -> dict[int, dict[int, float]]:
    """Return Metropolis-Hastings weights over a block's owners: each's own, and its neighbours'."""
    linked = {k: sorted(near[k] & set(owners)) for k in owners}
    others = {
        k: {j: 1 / (1 + max(len(linked[k]), len(linked[j]))) for j in linked[k]} for k in owners
    }
    return {k: {k: 1 - sum(row.values()), **row} for k, row in others.items()}


@torch.no_grad()
def mix(
    devices: Sequence[Device], weights: Mapping[str, Mapping[int, Mapping[int, float]]]
) -> list[list[Tensor]]:
    """Mix every block over its owners; return the common heads as they were."""
    before = [
        {name: [p.clone() for p in block.parameters()] for name, block in device.blocks.items()}
        for device in devices
    ]
    for device in devices:
        for name, block in device.blocks.items():
            row = weights[name][device.index]
            for i, p in enumerate(block.parameters()):
                p.copy_(sum(w * before[j][name][i] for j, w in row.items()))
    return [blocks["head.common"] for blocks in before]


def train(
    device: Device,
    votes: Tensor,
    heads: Sequence[Sequence[Tensor]],
    server_round: int,
) -> float:
    """Train a device for a round, and its generator; return the mean loss.

    ``votes`` ``[heads, classes]`` are the label counts of this device and of those whose ``heads``
    it has received, times their mixing weights.
    """
    o, config, total = device.o, device.config, len(device.y)
    guidance = o["guidance"] * o["guidance-decay"] ** (server_round - 2) if heads else 0.0
    omega, near = votes / votes.sum(dim=0).clamp_min(1e-12), votes.sum(dim=0) / votes.sum()
    order = derive_seed(device.seed, "schedule", server_round)
    steps = order_of_steps(device.owned, int(config["local-iterations"]), order)
    size, rng = int(config["batch-size"]), device.rng("batches", server_round)
    passes = [torch.randperm(total, generator=rng) for _ in range(-(-len(steps) * size // total))]
    batches = torch.cat(passes)[: len(steps) * size].split(size)
    optimizer = torch.optim.SGD(
        device.parameters, lr=config["learning-rate"], momentum=config["momentum"]
    )
    rng, loss_sum = device.rng("generator", server_round), 0.0
    for modalities, rows in zip(steps, batches, strict=True):
        x = {m: device.x[m][rows] for m in modalities}
        loss = loss_of(device, x, device.y[rows], guidance, near, rng)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(device.parameters, config["clip-norm"])
        optimizer.step()
        loss_sum += loss.item()
    every = [list(device.head.parameters()), *heads]
    train_generator(device.generator, every, omega, near, o, rng)
    return loss_sum / len(steps)


def bare_loop(nodes: int, rounds: int) -> Trained:
    """Run the quickstart's DMML-KD one device after another, without this package's learning."""
    _, config = quickstart(nodes, rounds)
    options = parse_settings(config, find_parts()).settings.partition_options()
    devices = [Device(k, load_partition(options, k), config) for k in range(nodes)]
    near = {k: {(k - 1) % nodes, (k + 1) % nodes} for k in range(nodes)}  # a ring
    names = dict.fromkeys(name for device in devices for name in device.blocks)
    owners = {name: [d.index for d in devices if name in d.blocks] for name in names}
    weights = {name: weights_of(owners[name], near) for name in names}
    begun, ended, losses = time.perf_counter(), list[float](), list[float]()
    for server_round in range(1, rounds + 1):
        heads = mix(devices, weights) if server_round > 1 else []
        means = list[float]()
        for device in devices:
            row = weights["head.common"][device.index] if heads else {device.index: 1.0}
            votes = torch.stack([w * devices[j].counts for j, w in row.items()])
            others = [heads[j] for j in row if j != device.index]
            means.append(train(device, votes, others, server_round))
        losses.append(fmean(means))
        ended.append(time.perf_counter())
    mix(devices, weights)
    return Trained(begun, ended[1:], losses, fmean(device.accuracy() for device in devices))
