"""What a device insists on: one protocol, ``require-tls``, ``require-sealed`` (node config)."""

from flwr.app import Context, RecordDict

from ..base.errors import SettingsError
from ..base.overrides import with_overrides
from ..transport.messages import PEERS, PLAN, protocol_problem
from .direct import TLS_KEYS, read_tls
from .hosting import of_partition
from .sealing import seals

REQUIRE_TLS, REQUIRE_SEALED = "require-tls", "require-sealed"


def check_required(context: Context, content: RecordDict) -> None:
    """Refuse a message of a run that does not protect what this device sends as it insists.

    With ``require-tls`` it exchanges letters over TLS only, with ``require-sealed`` it takes part
    in runs with ``exchange.sealed`` only. It asks before it does anything, at every message: the
    coordinator cannot talk it out of that.

    Raises
    ------
    SettingsError
        The run does not; it says what is missing.
    """
    problem = ""
    if _insists(context, REQUIRE_SEALED) and not seals(context):
        problem = "the run has exchange.sealed = false; it would leave this device unencrypted"
        problem = f"{REQUIRE_SEALED} = true, and {problem}"
    asked = with_overrides(context.run_config).get("exchange.transport")
    direct = PEERS in content or asked == "direct"
    if direct and _insists(context, REQUIRE_TLS) and read_tls(context) is None:
        problem = f"{REQUIRE_TLS} = true, and there is no {', '.join(TLS_KEYS)}: letters would go "
        problem += "to the neighbours in the clear"
    if problem:
        whose = of_partition(context.node_config)
        raise SettingsError(f"{whose}node config: {problem}. It takes no part")


def check_understood(context: Context, content: RecordDict) -> None:
    """Refuse a coordinator that speaks another protocol.

    Raises
    ------
    SettingsError
        It does; the message names both versions.
    """
    said = content.config_records[PLAN]
    if problem := protocol_problem(said, "the coordinator", "this device"):
        raise SettingsError(of_partition(context.node_config) + problem)


def _insists(context: Context, key: str) -> bool:
    value = context.node_config.get(key, False)
    if not isinstance(value, bool):
        whose = of_partition(context.node_config)
        raise SettingsError(f"{whose}node config: {key} = {value!r}: must be true or false")
    return value
