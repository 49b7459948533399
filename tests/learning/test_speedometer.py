"""Training speeds as a learner measures them, and iterations that differ between modalities."""

import pytest
import torch
from helpers import FAST, make_learner
from torch import nn

from flwr_dmml.learning.balance import LocalPhase
from flwr_dmml.learning.optimisers import Iteration
from flwr_dmml.learning.speedometer import SPEEDS, Speedometer
from flwr_dmml.payload.blocks import flatten
from flwr_dmml.payload.flat import Flat
from flwr_dmml.payload.plan import Plan

CONFIG = {**FAST, "num-nodes": 2, "method": "dpsgd", "modality-pattern": "audio+image"}


def test_speed_by_hand():
    """w = (3, 4), one step with gradient (1, 2) at rate 0.5, so w = (2.5, 3).

    Conditional: ||g||^2 / ||w||^2 = 5 / 25 over one update.
    """
    encoder = nn.Linear(2, 1, bias=False)
    encoder.weight.data = torch.tensor([[3.0, 4.0]])
    flat = Flat({"encoder": encoder})
    meter = Speedometer(flat, {"audio": encoder}, "conditional")
    odometer = meter.odometer(flat.rows)
    gradient = torch.tensor([[1.0, 2.0]])
    iteration = Iteration(flat.rows, flat.parameters, gradients={0: gradient[None]})
    iteration.gather(flat)
    odometer.before_step(iteration, ["audio"])
    encoder.weight.data.sub_(0.5 * gradient)
    odometer.after_step(iteration, ["audio"])
    (phases,) = odometer.phases([meter.start])
    assert phases["audio"].iterations == 1
    assert meter.take(phases) == pytest.approx({"speed.audio": 0.2})


@pytest.mark.parametrize("metric", ["relative", "path", "conditional"])
def test_devices_of_a_stack_are_measured_each_by_itself(metric: str):
    """Audio and image of all, the image of devices 0 and 2, and both of device 2."""
    start, steps = torch.randn(3, 16), torch.randn(3, 3, 16)
    turns = [([0, 1, 2], ["audio", "image"]), ([0, 2], ["image"]), ([2], ["audio", "image"])]

    def measured(devices: list[int]) -> list[dict[str, LocalPhase]]:
        encoders: dict[str, nn.Module] = {"audio": nn.Linear(3, 2), "image": nn.Linear(2, 1)}
        flat, x = Flat(encoders), start[devices].clone()
        meter = Speedometer(flat, encoders, metric)
        odometer = meter.odometer(x)
        for step, (those, modalities) in zip(steps, turns, strict=True):
            rows = [at for at, k in enumerate(devices) if k in those]
            g = step[[devices[at] for at in rows]]
            own, every = x[rows], rows == list(range(len(devices)))
            iteration = Iteration(
                x if every else own,
                [],
                None if every else torch.tensor(rows),
                dict(enumerate(flat.views(g))),
            )
            if rows:
                iteration.gather(flat)
                odometer.before_step(iteration, modalities)
                iteration.x -= 0.1 * g
                iteration.put(x, iteration.x)
                odometer.after_step(iteration, modalities)
        return odometer.phases([meter.start] * len(devices))

    together = measured([0, 1, 2])
    counts = [(each["audio"].iterations, each["image"].iterations) for each in together]
    assert counts == [(1, 2), (1, 1), (2, 3)]
    for k, phases in enumerate(together):
        (alone,) = measured([k])
        for m, phase in alone.items():
            other = phases[m]
            assert phase.gradient_ratio == other.gradient_ratio
            assert phase.path_length == other.path_length
            assert torch.equal(phase.after, other.after)


def meter_of(**encoders: nn.Module) -> tuple[Flat, Speedometer]:
    flat = Flat(encoders)
    return flat, Speedometer(flat, encoders, "conditional")


def _speedometer_at_a_fifth() -> Speedometer:
    """Return a speedometer that has measured 0.2 for audio, as above, and nothing for image."""
    encoder = nn.Linear(2, 1, bias=False)
    encoder.weight.data = torch.tensor([[3.0, 4.0]])
    flat, meter = meter_of(audio=encoder, image=nn.Linear(2, 1))
    odometer = meter.odometer(flat.rows)
    gradients = {0: torch.tensor([[[1.0, 2.0]]])}
    iteration = Iteration(flat.rows, flat.parameters, gradients=gradients)
    iteration.gather(flat)
    odometer.before_step(iteration, ["audio"])
    odometer.after_step(iteration, ["audio"])
    meter.take(odometer.phases([meter.start])[0])
    return meter


def inbox(*reports):
    return {neighbour: {SPEEDS: report} for neighbour, report in enumerate(reports)}


def test_a_report_is_in_the_order_asked_for_and_zero_where_nothing_is_known():
    """Image is owned and has not trained, radar is not owned."""
    report = _speedometer_at_a_fifth().report(("radar", "image", "audio"))
    assert report == pytest.approx([0.0, 0.0, 0.2])


def test_near_by_hand():
    """Audio: own 0.2, 0.4 and 0.9, one knows none: 1.5 / 3. Image: 3 and 1, own unset: 4 / 2."""
    reports = [[0.4, 3.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.0]]
    meter = _speedometer_at_a_fifth()
    near, wrong = meter.near(
        ("audio", "image", "radar"), inbox(*(torch.tensor(r) for r in reports))
    )
    assert near == pytest.approx({"near.audio": 0.5, "near.image": 2.0}) and wrong == []


def test_near_leaves_out_entries_that_are_no_speed():
    meter = _speedometer_at_a_fifth()
    strange, known = torch.tensor([-5.0, -1.0]), torch.tensor([0.6, 0.0])
    near, _ = meter.near(("audio", "image"), inbox(strange, known))
    assert near == pytest.approx({"near.audio": 0.4})


def test_near_nobody_it_is_the_own_speed():
    near, _ = _speedometer_at_a_fifth().near(("audio", "image"), {})
    assert near == pytest.approx({"near.audio": 0.2})


def test_before_the_first_round_there_is_nothing_to_report():
    _, meter = meter_of(audio=nn.Linear(2, 1))
    assert meter.report(("audio", "image")) == [0.0, 0.0]
    assert meter.near(("audio", "image"), inbox(torch.zeros(2))) == ({}, [])
    neighbour = torch.tensor([0.0, 2.5])
    assert meter.near(("audio", "image"), inbox(neighbour)) == ({"near.image": 2.5}, [])


def test_a_report_survives_as_state():
    meter = _speedometer_at_a_fifth()
    _, other = meter_of(audio=nn.Linear(2, 1), image=nn.Linear(2, 1))
    other.load_state(meter.state())
    assert other.report(("audio", "image")) == meter.report(("audio", "image"))
    other.load_state({})
    assert other.report(("audio", "image")) == [0.0, 0.0]


@pytest.mark.parametrize("metric", ["relative", "cumulative", "cosine", "path", "conditional"])
def test_every_round_reports_a_speed_for_every_modality(metric):
    metrics = make_learner({**CONFIG, "speed-metric": metric}).run_round(Plan(1, 3), {}).metrics
    assert metrics["speed.audio"] > 0 and metrics["speed.image"] > 0


def test_speeds_survive_between_rounds_as_state():
    one, two = make_learner(CONFIG), make_learner(CONFIG)
    one.run_round(Plan(1, 3), {})
    two.load_state({name: value.clone() for name, value in one.state().items()})
    assert one.run_round(Plan(2, 3), {}).metrics == two.run_round(Plan(2, 3), {}).metrics


def test_a_modality_with_no_updates_keeps_its_encoder_and_has_no_speed():
    """Image gets none: its encoder and its head stay, audio's move."""
    learner = make_learner(CONFIG)
    before = {name: flatten(module) for name, module in learner.blocks().items()}
    plan = Plan(1, 3, by_modality={"image": 0})
    metrics = learner.run_round(plan, {}).metrics
    moved = {b for b, v in before.items() if not torch.equal(v, flatten(learner.blocks()[b]))}
    assert moved == {"encoder.audio", "head.audio", "head.common"}
    assert "speed.image" not in metrics and metrics["train.iterations"] == 3


def test_a_parked_device_publishes_without_training():
    learner = make_learner(CONFIG)
    before = {name: flatten(module) for name, module in learner.blocks().items()}
    outcome = learner.run_round(Plan(1, 3, by_modality={"audio": 0, "image": 0}), {})
    assert all(torch.equal(outcome.payload[b], v) for b, v in before.items())
    assert "train.loss" not in outcome.metrics


def test_staggering_splits_joint_iterations_at_the_same_updates():
    """20 each, half of them staggered: 10 joint and 2 x 10 solo iterations."""
    metrics = make_learner({**CONFIG, "stagger": 0.5}).run_round(Plan(1, 20), {}).metrics
    assert metrics["train.iterations"] == 30
    joint = make_learner(CONFIG).run_round(Plan(1, 20), {}).metrics
    assert joint["train.iterations"] == 20


def test_plan_of_single_modalities_travels():
    from flwr_dmml.transport.messages import read_plan, write_plan

    plan = Plan(3, 20, by_modality={"audio": 7, "image": 0})
    assert read_plan(write_plan(plan, "dpsgd")) == plan
