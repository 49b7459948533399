"""Operations of a device's iterations and bytes of its payload, from its real model and loss."""

from dataclasses import replace

from ..base.options import Group
from ..base.seeding import global_generator
from ..energy.costs import Work
from ..payload.blocks import addressed
from ..payload.plan import Payload, Plan
from ..privacy.masks import new_key
from .flops import FlopCounter
from .learner import Learner
from .options import Options
from .settings import DeviceSettings

_Key = tuple[type[Learner], DeviceSettings, Options, Group, tuple[str, ...], tuple[int, int]]
_measured: dict[_Key, Work] = {}  # devices of one process with the same model count once


def measure_work(learner: Learner) -> Work:
    """Count the operations of real iterations: forward, losses and backward, on a mini-batch.

    The count covers matrix products, convolutions and attention, as in ``torch.utils.flop_counter``
    (a multiply-add is 2). It does not cover biases, norms, activations, element-wise losses and the
    optimiser, which are small beside them, nor recurrent layers that the counter cannot see into
    (such as an LSTM on the CPU). A round's own work is counted as in round 2, without neighbours
    (coupling with :data:`~.coupled.LINKS`), and once more in each of the phases of the method's
    rounds.

    Samples that lack a modality count as if they were complete: which of them a mini-batch holds is
    by chance, and the cost must not depend on whom it is measured on.

    The learner is reset before and after: it must not have been trained.

    Raises
    ------
    ValueError
        Nothing of a modality's iteration can be counted.
    """
    settings, modalities = learner.settings, learner.partition.modalities
    sizes = len(learner.train_data), len(learner.validation_data)  # a method may go over them all
    key = (type(learner), settings, learner.options, learner.rule.options, modalities, sizes)
    if key not in _measured:
        train, held_out = learner.train_data, learner.validation_data
        try:
            learner.train_data = replace(train, present=None)
            learner.validation_data = replace(held_out, present=None)
            with global_generator(0, learner.device):
                learner.reset()
                _measured[key] = _measure(learner)
        finally:
            learner.train_data, learner.validation_data = train, held_out
        learner.reset()
    return _measured[key]


def first_payload(learner: Learner) -> Payload:
    """Return what a device publishes in round 1 for one neighbour, trained or not.

    Its bytes are those that are planned with until a round has been run: whatever compresses a
    payload, or writes it in another way, is in it. The learner must be as it begins, and is so
    afterwards.
    """
    me, nodes = learner.partition.partition_id, learner.settings.num_nodes
    near, far = (me + 1) % nodes, (me + 2) % nodes
    settings, phases = learner.settings, learner.options.phases(learner.settings.num_server_rounds)
    keys: dict[int, bytes] = {}
    if settings.privacy.secure_sums:
        learner.private_key, keys[far] = new_key()
    plan = Plan(
        1,
        settings.local_iterations,
        recipients=(near,),
        shares=dict.fromkeys(learner.block_names, (0.5, 0.5)),
        partners={addressed(block, near): (me, far) for block in learner.block_names},
        keys=keys,
        phase=phases[0],
    )
    with learner.in_round(plan):
        learner.begin(plan, {})
        payload = learner.finish(plan, {}, None).payload
    learner.reset()
    return payload


def _measure(learner: Learner) -> Work:
    plan, modalities = Plan(server_round=2, iterations=1), learner.partition.modalities
    learner.server_round = plan.server_round

    def preparation(plan: Plan) -> float:
        with FlopCounter() as counter:
            learner.after_mixing(plan, {})
            learner.before_training(plan, {})
        return float(counter.flops)

    before = preparation(plan)
    batch = next(iter(learner.batches(1)))
    learner.model.train()

    def iteration(*subset: str) -> float:
        with FlopCounter() as counter:
            learner.loss_of(batch.only(subset)).backward()  # type: ignore[no-untyped-call]
        return float(counter.flops)

    joint = iteration(*modalities)
    solo = {m: iteration(m) for m in modalities} if len(modalities) > 1 else {modalities[0]: joint}
    if free := [m for m, flops in solo.items() if flops == 0]:
        raise ValueError(
            f"no operation of training '{free[0]}' can be counted: its energy is unknown"
        )
    with FlopCounter() as after:
        learner.after_training(plan, {})
    phases = filter(None, dict.fromkeys(learner.options.phases(learner.settings.num_server_rounds)))
    more = {phase: max(0.0, preparation(replace(plan, phase=phase)) - before) for phase in phases}
    coupling = learner.coupled.flops() if learner.coupled else 0.0
    return Work(joint, solo, before + float(after.flops) + coupling, more)
