"""The in-process Grid behaves as Flower's SuperLink and SuperNodes do."""

import sys
import threading
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_dmml.engine import AppError, InProcessGrid, flatten_config, load_app, server_identity


@pytest.fixture
def release():
    """An event that handlers can wait for; set at the end, so that no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(autouse=True)
def _identity():
    with server_identity(7):
        yield


def _counting_app(release: threading.Event | None = None) -> ClientApp:
    """Counts its calls in the context; fails or waits when the message says so."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = message.content.config_records["order"]
        counter = context.state.metric_records.get("counter", MetricRecord({"calls": 0}))
        calls = int(counter["calls"]) + 1
        context.state["counter"] = MetricRecord({"calls": calls})
        message.content.config_records["order"]["scribble"] = 1
        if order["what"] == "fail":
            raise RuntimeError("out of paper")
        if order["what"] == "wait" and release is not None:
            release.wait(30)
        about = {"calls": calls, "partition": int(context.node_config["partition-id"])}
        return Message(RecordDict({"about": MetricRecord(about)}), reply_to=message)

    return app


def _order(node_id: int, what: str = "work") -> Message:
    return Message(RecordDict({"order": ConfigRecord({"what": what})}), node_id, "train")


def test_replies_name_their_node_and_message_and_state_lasts():
    grid = InProcessGrid(_counting_app(), 3, {})
    for calls in (1, 2):
        messages = [_order(n) for n in grid.get_node_ids()]
        replies = list(grid.send_and_receive(messages, timeout=10))
        by_id = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
        assert len(replies) == 3
        for reply in replies:
            assert by_id[reply.metadata.reply_to_message_id] == reply.metadata.src_node_id
            assert reply.content.metric_records["about"]["calls"] == calls
        partitions = {r.content.metric_records["about"]["partition"] for r in replies}
        assert partitions == {0, 1, 2}


def test_what_a_node_does_to_a_message_stays_with_it():
    grid = InProcessGrid(_counting_app(), 1, {})
    message = _order(grid.get_node_ids()[0])
    list(grid.send_and_receive([message], timeout=10))
    assert "scribble" not in message.content.config_records["order"]


def test_a_node_that_raises_keeps_its_state_and_the_reply_says_why():
    grid = InProcessGrid(_counting_app(), 1, {})
    node = grid.get_node_ids()[0]
    list(grid.send_and_receive([_order(node)], timeout=10))
    (failed,) = grid.send_and_receive([_order(node, "fail")], timeout=10)
    assert failed.has_error() and failed.error.code == 2
    assert "out of paper" in failed.error.reason
    (after,) = grid.send_and_receive([_order(node)], timeout=10)
    assert after.content.metric_records["about"]["calls"] == 2, "the failed call left no trace"


def test_a_stalled_node_does_not_keep_the_others_waiting(release):
    grid = InProcessGrid(_counting_app(release), 3, {}, stall_s=0.1)
    first, *others = grid.get_node_ids()
    messages = [_order(first, "wait"), *(_order(n) for n in others)]
    replies = list(grid.send_and_receive(messages, timeout=3))
    assert {r.metadata.src_node_id for r in replies} == set(others)
    release.set()
    late = messages[0].metadata.message_id
    pulled: list[Message] = []
    for _ in range(400):
        pulled = grid.pull_messages([late])
        if pulled:
            break
        threading.Event().wait(0.01)
    assert [r.metadata.src_node_id for r in pulled] == [first]
    assert grid.pull_messages([late]) == [], "a reply is handed out once"


def test_replies_are_counted_as_they_come():
    counted: list[tuple[int, int]] = []
    grid = InProcessGrid(_counting_app(), 3, {}, on_reply=lambda *n: counted.append(n))
    list(grid.send_and_receive([_order(n) for n in grid.get_node_ids()], timeout=10))
    assert counted[-1] == (3, 3) and all(total == 3 for _, total in counted)


def test_a_message_to_nobody_is_refused():
    with pytest.raises(ValueError, match="no node 5"):
        InProcessGrid(_counting_app(), 1, {}).push_messages([_order(5)])


def test_no_messages_is_no_wait():
    assert InProcessGrid(_counting_app(), 1, {}).send_and_receive([], timeout=None) == []


def test_config_is_flattened_as_flower_does():
    nested = {"method": "dmml-kd", "dmml-kd": {"guidance": 1.0, "deep": {"er": True}}}
    flat = {"method": "dmml-kd", "dmml-kd.guidance": 1.0, "dmml-kd.deep.er": True}
    assert flatten_config(nested) == flat


def test_a_folder_that_is_no_app_is_refused(tmp_path):
    with pytest.raises(AppError, match=r"no pyproject\.toml"):
        load_app(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(AppError, match="names no serverapp and clientapp"):
        load_app(tmp_path)


def test_a_component_of_the_wrong_kind_is_refused(tmp_path):
    (tmp_path / "odd_app_for_a_test.py").write_text("app = 3\n")
    text = '[tool.flwr.app.components]\nserverapp = "odd_app_for_a_test:app"\n'
    (tmp_path / "pyproject.toml").write_text(text + 'clientapp = "odd_app_for_a_test:app"\n')
    with pytest.raises(AppError, match="is not a ServerApp"):
        load_app(tmp_path)


def test_a_nodes_timeout_does_not_count_the_time_it_waits_for_others():
    """Four nodes of 0.3 s each, one after the other: none is late at a timeout of 0.9 s."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        threading.Event().wait(0.3)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, 4, {})
    replies = grid.send_and_receive([_order(n) for n in grid.get_node_ids()], timeout=0.9)
    assert len(replies) == 4


def test_a_client_app_that_exits_ends_its_message_only():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise SystemExit("goodbye")

    grid = InProcessGrid(app, 1, {})
    for _ in range(2):
        (reply,) = grid.send_and_receive([_order(grid.get_node_ids()[0])], timeout=10)
        assert reply.has_error() and "goodbye" in reply.error.reason


def test_two_apps_with_modules_of_one_name_are_kept_apart(tmp_path):
    """And a module that is imported only in a round is found."""
    for which in ("one", "two"):
        folder = tmp_path / which
        folder.mkdir()
        (folder / "twin_late.py").write_text(f"which = {which!r}\n")
        (folder / "twin_app.py").write_text(
            "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
            "client, server = ClientApp(), ServerApp()\n"
            "def which():\n    import twin_late\n    return twin_late.which\n"
        )
        (folder / "pyproject.toml").write_text(
            "[tool.flwr.app.components]\n"
            'serverapp = "twin_app:server"\nclientapp = "twin_app:client"\n'
        )
    import sys

    load_app(tmp_path / "one")
    assert sys.modules["twin_app"].which() == "one"
    load_app(tmp_path / "two")
    assert str(tmp_path / "two") in sys.modules["twin_app"].__file__


def test_modules_that_are_not_the_apps_stay_what_they_are(tmp_path: Path):
    """An app that names a module of Python's own does not have it imported anew."""
    components = '[tool.flwr.app.components]\nserverapp = "json:dumps"\nclientapp = "json:loads"\n'
    (tmp_path / "pyproject.toml").write_text(components)
    before = sys.modules["json.decoder"]
    with pytest.raises(AppError, match="json:dumps is not a ServerApp"):
        load_app(tmp_path)
    assert sys.modules["json.decoder"] is before
