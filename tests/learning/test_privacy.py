"""DP-SGD of single samples: clipping, noise, where it comes from, its account, and refusals."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from helpers import FAST, make_learner, run_peers, run_together
from helpers_resume import metrics, stopped_and_resumed
from torch import Tensor, nn

from flwr_dmml.base.errors import MethodError, SettingsError
from flwr_dmml.base.seeding import global_generator
from flwr_dmml.clients import DPSGD, Learner, find_methods
from flwr_dmml.clients.hello import introduction
from flwr_dmml.learning.batch import Batch, batch_of
from flwr_dmml.learning.learner import MEMORY, unaccounted
from flwr_dmml.learning.per_sample import NoisyGradients
from flwr_dmml.learning.spending import EPSILON, LEDGER, SPENT
from flwr_dmml.payload.plan import Plan
from flwr_dmml.privacy.accountant import Ledger, sigma_for
from flwr_dmml.privacy.noise import gaussian, poisson_rows, uniform
from flwr_dmml.privacy.options import Mechanism
from flwr_dmml.settings import OwnParts, find_parts, parse_settings
from flwr_dmml.strategies.epsilons import epsilon_lines
from flwr_dmml.transport.messages import pack, unpack

DP: dict[str, Any] = {
    **FAST,
    "method": "dpsgd",
    "num-nodes": 3,
    "privacy.dp": "sample",
    "privacy.sigma": 1.0,
}
BOTH = ("audio", "image")
PASSING = [name for name, kind in find_methods().items() if not unaccounted(kind)]
HUGE = {"clip": 1e9, "sigma": 0.0}


def device(partition: int = 2, **changed: Any) -> Learner:
    """A device with both sensors, or one of them."""
    return make_learner({**DP, **{k.replace("_", "-"): v for k, v in changed.items()}}, partition)


def how(learner: Learner) -> Mechanism:
    assert learner.spending.how is not None
    return learner.spending.how


def noisy(learner: Learner, **changed: Any) -> NoisyGradients:
    trained = learner.flat.indices_of(learner.trained_parameters())
    return NoisyGradients(learner, trained, replace(how(learner), **changed), {})


def some(learner: Learner, count: int = 7) -> Batch:
    return batch_of(learner.train_data.subset(torch.arange(count)))


def by_hand(learner: Learner, batch: Batch, clip: float, by_block: bool) -> dict[int, Tensor]:
    """The sum of clipped gradients, one sample and one block after the other."""
    flat, parameters = learner.flat, learner.flat.parameters
    sums: dict[int, Tensor] = {}
    for k in range(len(batch.labels)):
        one = {m: x[k : k + 1] for m, x in batch.inputs.items()}
        loss = learner.local_loss(Batch(one, batch.labels[k : k + 1]))
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        own = {i: g for i, g in enumerate(found) if g is not None}
        blocks = {flat.block_of(i) for i in own}
        for block in blocks if by_block else [""]:
            mine = [i for i in own if not by_block or flat.block_of(i) == block]
            norm = sqrt(sum(float(own[i].double().square().sum()) for i in mine))
            most = clip / sqrt(len(blocks)) if by_block else clip
            for i in mine:
                sums[i] = sums.get(i, 0) + own[i] * min(1.0, most / norm)
    return sums


# ---- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("by_block", [True, False])
@pytest.mark.parametrize("modalities", [BOTH, ("audio",)])
def test_clipped_gradients_are_those_of_a_loop(by_block: bool, modalities: tuple[str, ...]):
    learner = device()
    batch, clip = some(learner), 0.5
    found = noisy(learner, clip=clip, by_block=by_block).clipped_sum(batch, modalities)
    expected = by_hand(learner, batch.only(modalities), clip, by_block)
    assert found.keys() == expected.keys() and len(found) > 2
    for i, g in found.items():
        assert torch.allclose(g, expected[i], atol=1e-6), i
    whole = sqrt(sum(float(g.square().sum()) for g in found.values()))
    assert whole <= len(batch.labels) * clip + 1e-5


def test_a_sample_counts_at_most_clip_over_all_blocks():
    learner = device()
    for by_block in (True, False):
        alone = noisy(learner, clip=1e-3, by_block=by_block).clipped_sum(some(learner, 1), BOTH)
        norm = sqrt(sum(float(g.double().square().sum()) for g in alone.values()))
        assert norm == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_samples_go_through_in_parts(at_once: int, monkeypatch: pytest.MonkeyPatch):
    learner = device()
    whole = noisy(learner).clipped_sum(some(learner), BOTH)
    size = sum(p.numel() for p in learner.trained_parameters())
    monkeypatch.setattr("flwr_dmml.learning.per_sample.NUMBERS", at_once * size)
    parts = noisy(learner).clipped_sum(some(learner), BOTH)
    assert all(torch.allclose(g, parts[i], atol=1e-6) for i, g in whole.items())


def test_recurrent_layers_go_through_in_a_loop():
    """With the same gradients as those of vmap, on a model that both can compute."""
    learner = device()
    every = noisy(learner)
    batch, reached = some(learner), every._reached(BOTH)
    assert every._each == every._by_vmap
    looped = every._by_loop(batch.inputs, batch.labels, reached)
    for i, g in every._by_vmap(batch.inputs, batch.labels, reached).items():
        assert torch.allclose(g, looped[i], atol=1e-6)
    learner.flat.modules["recurrent"] = nn.GRU(2, 2)
    assert noisy(learner)._each.__name__ == "_by_loop"
    half = make_learner({**DP, "mixed-precision": True}, 2)
    half.run_round(Plan(1, 1), {})
    assert noisy(half)._each.__name__ == "_by_loop" and half.flat.vector.isfinite().all()


@pytest.mark.parametrize("count", [1, 5, 30])
def test_without_noise_and_clipping_it_is_sgd(count: int):
    """The gradient of the mean loss, times the samples there over those expected."""
    learner = device()
    batch = some(learner, count)
    found = noisy(learner, **HUGE).of(batch, BOTH)
    loss = learner.local_loss(batch)
    expected = torch.autograd.grad(loss, learner.trained_parameters(), allow_unused=True)
    assert how(learner).batch == 16
    for g, e in zip(found, expected, strict=True):
        assert (g is None) == (e is None)
        if g is not None and e is not None:
            assert torch.allclose(g, e * count / 16, atol=1e-6)


def test_a_round_without_noise_and_clipping_is_that_of_sgd(monkeypatch: pytest.MonkeyPatch):
    plain = make_learner(
        {**FAST, "method": "dpsgd", "num-nodes": 3, "exact": True, "clip-norm": 0}, 2
    )
    learner = device()
    learner.spending.how = replace(how(learner), **HUGE)
    monkeypatch.setattr(
        learner.spending, "drawn", learner.batches
    )  # of 16, as many as are expected
    plan = Plan(1, 4)
    for each in (plain, learner):
        each.run_round(plan, {})
    assert torch.allclose(plain.flat.vector, learner.flat.vector, atol=1e-5)
    assert not torch.equal(plain.flat.vector, device().flat.vector)


def test_a_sample_that_is_not_finite_does_not_count():
    learner = device()
    batch = some(learner, 3)
    sound = noisy(learner, by_block=False).clipped_sum(some(learner, 2), BOTH)
    inputs = {m: x.clone() for m, x in batch.inputs.items()}
    inputs["image"][2] = torch.nan
    found = noisy(learner, by_block=False).clipped_sum(Batch(inputs, batch.labels), BOTH)
    assert found.keys() == sound.keys()
    assert all(torch.allclose(g, sound[i], atol=1e-6) for i, g in found.items())


def test_samples_that_lack_a_modality():
    learner = make_learner({**DP, "missing.train-share": 0.4}, 2)
    batch = batch_of(learner.train_data)
    assert len(batch.parts) > 1
    found = noisy(learner, clip=0.3, by_block=False).clipped_sum(batch, BOTH)
    expected: dict[int, Tensor] = {}
    for part in batch.parts:
        for i, g in by_hand(learner, part, 0.3, False).items():
            expected[i] = expected.get(i, 0) + g
    assert all(torch.allclose(found[i], g, atol=1e-5) for i, g in expected.items())
    learner.run_round(Plan(1, 3), {})


# ---- noise ------------------------------------------------------------------------------------


def test_an_empty_batch_is_noise_of_known_size():
    """On every parameter that the iteration reaches, by sigma C / b; on no other."""
    learner = device()
    none = batch_of(learner.train_data.subset(torch.arange(0)))
    every = noisy(learner, sigma=3.0, clip=2.0)
    drawn = [g for g in every.of(none, BOTH) if g is not None]
    numbers = torch.cat([g.flatten() for g in drawn])
    assert len(numbers) == sum(p.numel() for p in learner.trained_parameters())
    assert float(numbers.std()) == pytest.approx(3.0 * 2.0 / 16, rel=0.05)
    assert abs(float(numbers.mean())) < 5 * 3.0 * 2.0 / 16 / sqrt(len(numbers))
    alone = every.of(none, ("audio",))
    names = [
        learner.flat.block_of(i) for i in learner.flat.indices_of(learner.trained_parameters())
    ]
    assert {n for n, g in zip(names, alone, strict=True) if g is None} == {
        "encoder.image",
        "head.image",
    }


def test_normal_and_uniform_numbers():
    x, u = gaussian(200_001).double(), uniform(200_000)
    assert x.shape == (200_001,) and abs(float(x.mean())) < 0.02
    assert float(x.std()) == pytest.approx(1, abs=0.02)
    assert float((x.abs() > 1.959964).double().mean()) == pytest.approx(0.05, abs=0.005)
    assert u.min() > 0 and u.max() <= 1 and u.mean() == pytest.approx(0.5, abs=0.01)


def test_each_sample_is_drawn_by_itself():
    sizes = [len(poisson_rows(400, 0.08)) for _ in range(300)]
    assert np.mean(sizes) == pytest.approx(32, abs=1.6)  # 5 standard errors
    assert np.var(sizes) == pytest.approx(400 * 0.08 * 0.92, rel=0.45)
    assert poisson_rows(5, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_the_seed_of_the_run_does_not_give_the_noise_again():
    """Whatever of the run a neighbour knows: the config, the state, and every public draw."""
    found = []
    for _ in range(2):
        learner = device()
        with global_generator(0):
            learner.run_round(Plan(1, 2), {})
        found.append(learner.flat.vector.clone())
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    plain = make_learner({**FAST, "method": "dpsgd", "num-nodes": 3}, 2)
    plain.run_round(Plan(1, 2), {})
    more = learner.state().keys() - plain.state().keys()
    assert more == {MEMORY + LEDGER}  # which holds numbers of steps: no secret is kept


# ---- ledger and budget --------------------------------------------------------------------------


def test_the_ledger_is_kept_and_resumed():
    """Booked before the first iteration; after a resume the same as without one."""
    whole, first = device(), device()
    for t in (1, 2, 3):
        outcome = whole.run_round(Plan(t, 2), {})
    for t in (1, 2):
        first.run_round(Plan(t, 2), {})
    then = device()
    then.load_state(unpack(pack(first.state())))
    resumed = then.run_round(Plan(3, 2), {})
    expected = Ledger(((1.0, how(whole).rate, 6),))
    assert whole.spending.ledger == then.spending.ledger == expected and expected.steps == 6
    assert outcome.metrics[EPSILON] == resumed.metrics[EPSILON]
    assert outcome.metrics[EPSILON] == expected.epsilon(how(whole).delta)
    assert Ledger().plus(1, 0.5, 2).plus(2, 0.5, 3).plus(2, 0.5, 1).events == (
        (1, 0.5, 2),
        (2, 0.5, 4),
    )
    whole.reset()
    assert whole.spending.ledger == Ledger()


def test_a_step_is_booked_before_it_is_taken(monkeypatch: pytest.MonkeyPatch):
    learner = device()

    def fails(iterations: int) -> Iterator[Batch]:
        assert learner.spending.ledger.steps == iterations == 2
        raise RuntimeError("on the way")

    monkeypatch.setattr(learner.spending, "drawn", fails)
    with pytest.raises(RuntimeError):
        learner.run_round(Plan(1, 2), {})
    assert learner.spending.ledger.steps == 2


@pytest.mark.parametrize("together", [False, True])
def test_a_device_whose_budget_is_spent_only_mixes(together: bool):
    """It publishes what it has mixed, and what it spent stays as it was."""
    one = Ledger(((1.0, 16 / 36, 2),)).epsilon(1 / 360)
    learner = device(**{"privacy.epsilon": one * 1.01})
    plan = Plan(1, 2)
    (first,) = run_together([learner], [plan]) if together else [learner.run_round(plan, {})]
    assert not isinstance(first, Exception)
    trained = learner.flat.vector.clone()
    assert first.metrics[EPSILON] == pytest.approx(one) and first.metrics[SPENT] == 1
    plan = Plan(2, 2)
    (then,) = run_together([learner], [plan]) if together else [learner.run_round(plan, {})]
    assert not isinstance(then, Exception)
    assert torch.equal(learner.flat.vector, trained)
    assert then.payload.keys() == first.payload.keys()
    assert then.metrics[EPSILON] == first.metrics[EPSILON]
    assert "train.iterations" not in then.metrics


def test_the_noise_is_found_from_epsilon_for_the_planned_steps():
    learner = device(**{"privacy.sigma": 0.0, "privacy.epsilon": 5.0, "num-server-rounds": 3})
    own = how(learner)
    assert learner.spending.planned_steps == 6 and own.rate == 16 / 36 and own.delta == 1 / 360
    assert own.sigma == sigma_for(5.0, own.rate, 6, own.delta)
    for t in (1, 2, 3, 4):
        metrics = learner.run_round(Plan(t, 2), {}).metrics
    assert learner.spending.ledger.steps == 6 and metrics[EPSILON] <= 5.0


def test_a_run_tells_epsilon_and_parks_who_has_spent_all():
    """Three rounds can be paid for: in the fourth nobody trains, and no computing is billed."""
    three = Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360)
    peers = run_peers({**DP, "privacy.epsilon": three * 1.01}, num_rounds=5)
    each = [{n.partition: n for n in record.nodes} for record in peers.records]
    for k in range(3):
        told = [nodes[k].own[EPSILON] for nodes in each]
        assert told == sorted(told) and told[2] == told[4] == pytest.approx(three)
        assert [nodes[k].own[SPENT] for nodes in each] == [0, 0, 1, 0, 0]
        assert [sum(nodes[k].updates.values()) > 0 for nodes in each] == [True] * 3 + [False] * 2
        assert each[3][k].compute_j == 0 < each[2][k].compute_j
        assert each[4][k].bytes_sent > 0
        assert all(nodes[k].train_loss is None for nodes in each)
    assert not [p for record in peers.records for p in record.failed]
    options = parse_settings({**DP, "privacy.delta": 1e-4}, find_parts()).settings.privacy
    told, stopped = epsilon_lines("dpsgd", peers.records, options)
    assert told == (
        "dpsgd: differential privacy of one training sample, against all who see what its device "
        f"sends: epsilon {three:.3g} to {three:.3g} (median {three:.3g}) at delta 0.0001"
    )
    assert stopped == "dpsgd: budget spent before the end: node 0, 1, 2"
    assert len(epsilon_lines("dpsgd", peers.records[:3], options)) == 1  # as planned
    assert epsilon_lines("dpsgd", [], options) == []


# ---- refusals -----------------------------------------------------------------------------------


def test_baselines_pass():
    assert {"dpsgd", "local", "dsgdm", "d2", "qg-dsgdm", "dmml", "fedprox", "moon"} <= {*PASSING}


@pytest.mark.parametrize("method", PASSING)
def test_a_method_that_passes_takes_rounds_with_noise(method: str):
    config = {**DP, "method": method, "num-server-rounds": 4, "topology": "line"}
    learner = make_learner(config, 2)
    for t, phase in enumerate(learner.options.phases(4)[:2], start=1):
        outcome = learner.run_round(Plan(t, 1, phase=phase), {})
    assert learner.spending.ledger.steps >= 2 and outcome.metrics[EPSILON] > 0
    assert learner.flat.vector.isfinite().all()


def refused(config: Mapping[str, Any], *own: type[Learner]) -> str:
    with pytest.raises(SettingsError) as found:
        parse_settings(config, find_parts(OwnParts(own)))
    return str(found.value)


@pytest.mark.parametrize(
    ("method", "what"),
    [
        ("dmml-kd", "a generator"),
        ("fedproto", "prototypes"),
        ("ccl", "class means"),
        ("fedcmi", "class means"),
        ("ogm-ge", "ratios"),
        ("idkd", "threshold"),
        ("kd", "mini-batches of own samples together"),
        ("modality-mirror", "lessons"),
    ],
)
def test_a_method_that_takes_more_is_refused(method: str, what: str):
    said = refused({**DP, "method": method})
    assert f"the method '{method}' takes more from training samples" in said and what in said
    assert "allowed: d2, dmml, dpsgd" in said


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"label-correction": "network"}, "label-correction = 'network': it goes by the counts"),
        ({"label-correction": "uniform"}, "allowed: auto, off"),
        ({"input-noise": 0.1}, "input-noise = 0.1: it goes by the deviation"),
        ({"standardise": "auto"}, "standardise = 'auto'"),
        ({"exchange.transport": "direct"}, "allowed: relay"),
        ({"privacy.sigma": 0.0}, "needs sigma, or epsilon"),
        ({"compare-with": "fedproto"}, "the method 'fedproto'"),
    ],
)
def test_a_setting_that_goes_by_all_samples_is_refused(changed: dict[str, Any], said: str):
    assert said in refused({**DP, **changed})


@pytest.mark.parametrize("name", find_methods())
def test_every_built_in_method_says_what_it_takes(name: str):
    assert "does not say" not in unaccounted(find_methods()[name])


def test_a_method_of_ones_own_says_what_it_takes():
    class Quiet(DPSGD):
        name = "quiet"

        def local_loss(self, batch: Batch) -> Tensor:
            return super().local_loss(batch)

    class Told(Quiet):
        name = "told"
        unaccounted = ""

    class Draws(Told):
        name = "draws"
        unaccounted = ""

        def draw(self, batch: Batch) -> dict[str, Tensor]:
            return {}

    assert "what it does not say" in refused({**DP, "method": "quiet"}, Quiet)
    assert "what it draws" in refused({**DP, "method": "draws"}, Draws)
    parse_settings({**DP, "method": "told"}, find_parts(OwnParts((Told,))))


def test_a_model_that_mixes_samples_is_refused():
    class Norm(DPSGD):
        name = "norm"

        def build_model(self) -> Any:
            model = super().build_model()
            next(iter(model.encoders.values())).add_module(
                "norm", nn.BatchNorm1d(4, track_running_stats=False)
            )
            return model

    config = parse_settings({**DP, "method": "norm"}, find_parts(OwnParts((Norm,))))
    with pytest.raises(MethodError, match=r"norm \(BatchNorm1d\) mixes the samples"):
        config.learner("norm", device().partition)


def test_what_does_not_fit_the_samples_is_refused():
    with pytest.raises(SettingsError, match=r"36 training samples; allowed: below 1/36"):
        device(**{"privacy.delta": 0.1})
    with pytest.raises(SettingsError, match=r"privacy.epsilon = 0.001: no noise"):
        device(**{"privacy.sigma": 0.0, "privacy.epsilon": 1e-3, "privacy.delta": 1e-12})


def test_auto_chooses_what_can_be_accounted():
    learner = device(method="dmml")
    assert learner.settings.label_correction == "off" and learner.settings.noise == 0
    assert learner.shift() is None and not learner.noisy and not learner.stacks_now()
    off = make_learner({**FAST, "method": "dmml", "num-nodes": 3}, 2)
    assert off.settings.label_correction == "network" and off.settings.noise == 1
    assert off.spending.how is None and off.stacks_now()


def test_what_tells_of_own_samples_stays_on_the_device():
    learner = device()
    outcome = learner.run_round(Plan(1, 1, evaluate=True), {})
    assert not {"train.loss", "test.accuracy_own_shares"} & outcome.metrics.keys()
    assert {"test.accuracy", EPSILON, SPENT} <= outcome.metrics.keys()

    class Context:
        node_config: ClassVar[dict[str, Any]] = {}
        run_config: ClassVar[dict[str, Any]] = {}

    assert "class-counts" not in introduction(learner, Context())  # type: ignore[arg-type]


def test_a_run_that_is_resumed_has_spent_as_much_as_one_that_is_not(tmp_path: Path):
    """Stopped after two rounds; the budget is for three, so that nobody trains in the fourth."""
    three = Ledger(((1.0, 16 / 36, 6),)).epsilon(1 / 360)
    privacy = {"privacy.dp": "sample", "privacy.sigma": 1.0, "privacy.epsilon": three * 1.01}
    changed = {"method": "dpsgd", "partition": "iid", "energy.battery-share": 0.0, **privacy}
    folder = stopped_and_resumed(tmp_path, 2, **changed)
    lines = [json.loads(line) for line in metrics(folder)["dpsgd"].decode().splitlines()]
    assert len(lines) == 4
    expected = [Ledger(((1.0, 16 / 36, 2 * t),)).epsilon(1 / 360) for t in (1, 2, 3, 3)]
    for line, epsilon in zip(lines, expected, strict=True):
        assert [node["own"][EPSILON] for node in line["nodes"]] == [pytest.approx(epsilon)] * 4
        assert line["own"][EPSILON] == pytest.approx(epsilon)
    assert [line["own"][SPENT] for line in lines] == [0, 0, 1, 0]
    assert lines[2]["compute_j"] > 0 == lines[3]["compute_j"]
