"""What a device insists on: one protocol, TLS to its neighbours, and sealed payloads."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from helpers import FAST

from flwr_dmml.base.errors import SettingsError
from flwr_dmml.clients import make_client_app
from flwr_dmml.clients.required import check_required
from flwr_dmml.engine import server_identity
from flwr_dmml.transport.messages import PEERS, PLAN, SPOKEN, STATE

DIRECT, SEALED = {"exchange.transport": "direct"}, {"exchange.sealed": True}
PEER_LIST = RecordDict({PEERS: ConfigRecord({"1": "10.0.0.1:7447"})})


def check(node: dict[str, Any], run: dict[str, Any], content: RecordDict | None = None) -> None:
    check_required(Context(1, 2, node, RecordDict(), run), content or RecordDict())


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    names = ("tls-ca", "tls-certificate", "tls-key")
    for name in names:
        (tmp_path / name).touch()
    return {name: str(tmp_path / name) for name in names}


@pytest.mark.parametrize(
    ("node", "run", "words"),
    [
        (
            {"require-sealed": True, "partition-id": 2},
            {"exchange.sealed": False},
            "partition 2: node config: require-sealed = true, and the run has exchange.sealed = f",
        ),
        ({"require-sealed": True}, DIRECT, "node config: require-sealed = true, and the run has"),
        (
            {"require-tls": True},
            DIRECT,
            "require-tls = true, and there is no tls-ca, tls-certificate, tls-key: letters would",
        ),
        ({"require-tls": "yes"}, DIRECT, "require-tls = 'yes': must be true or false"),
        ({"require-sealed": 1}, {}, "require-sealed = 1: must be true or false"),
    ],
)
def test_a_run_that_does_not_protect_is_refused(
    node: dict[str, Any], run: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        check(node, run)
    assert words in str(refused.value)


def test_a_coordinator_cannot_talk_a_device_out_of_it() -> None:
    """Letters are exchanged where a message has peers, whatever its run config says."""
    with pytest.raises(SettingsError, match="require-tls = true"):
        check({"require-tls": True}, {}, PEER_LIST)


def test_what_is_protected_is_not_refused(tls: dict[str, str]) -> None:
    check({}, DIRECT, PEER_LIST)
    check({"require-tls": False, "require-sealed": False}, DIRECT, PEER_LIST)
    check({"require-tls": True}, {})  # the relay: its link is as its SuperNode was started
    check({"require-tls": True, **tls}, DIRECT, PEER_LIST)
    check({"require-sealed": True, "require-tls": True, **tls}, SEALED)


@pytest.mark.parametrize("kind", ["query.hello", "train", "query.state", "query.restore"])
def test_it_is_asked_at_every_message(kind: str) -> None:
    run = {**FAST, "num-nodes": 3, "modality-pattern": "image"}
    node = {"partition-id": 1, "num-partitions": 3, "require-sealed": True}
    content = RecordDict({PLAN: ConfigRecord({"method": "dpsgd"}), STATE: ConfigRecord()})
    device = Context(1, 2, node, RecordDict(), run)
    wrong = pytest.raises(SettingsError, match="partition 1: node config: require-sealed = true")
    with server_identity(1), wrong:
        make_client_app()(Message(content, 5, kind), device)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"protocol": 7, "version": "9.9"}, "speaks protocol 7 (flwr-dmml 9.9), this device 1"),
        ({}, "speaks protocol ? (flwr-dmml ?), this device 1"),
        ({"protocol": "\x1b[2J"}, r"speaks protocol \x1b[2J (flwr-dmml ?)"),
    ],
)
def test_a_coordinator_of_another_protocol_is_refused(said: dict[str, Any], words: str) -> None:
    def greet(spoken: dict[str, Any]) -> Message:
        run = {**FAST, "num-nodes": 3, "modality-pattern": "image"}
        device = Context(1, 2, {"partition-id": 1, "num-partitions": 3}, RecordDict(), run)
        content = RecordDict({PLAN: ConfigRecord({"method": "dpsgd", **spoken})})
        with server_identity(1):
            return make_client_app()(Message(content, 5, "query.hello"), device)

    with pytest.raises(SettingsError) as refused:
        greet(said)
    assert str(refused.value).startswith("partition 1: the coordinator") and words in str(
        refused.value
    )
    assert greet(SPOKEN).has_content()
