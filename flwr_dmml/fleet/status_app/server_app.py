"""Asks the devices of the run config, and prints a line for each answer as it comes."""

import json
import sys
import time
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

MARK = "flwr-dmml-status "
"""A line of the log that begins so is for ``fleet status``: JSON."""
END = "end"
MOST = 1 << 20
"""Characters of an answer; one that is longer is cut, and cannot be read."""
_POLL_S = 0.3

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Ask all at once; who has not answered in time is left out."""
    devices = json.loads(str(context.run_config["devices"]))
    messages = []
    for node in devices:
        others = {name: [host, port] for n, (name, host, port) in devices.items() if n != node}
        question = RecordDict({"ask": ConfigRecord({"peers": json.dumps(others)})})
        messages.append(Message(question, int(node), "query.status"))
    sent = time.time()
    waiting = dict(zip(grid.push_messages(messages), devices, strict=True))
    deadline = time.monotonic() + float(context.run_config["timeout-s"])
    while waiting and time.monotonic() < deadline:
        for reply in grid.pull_messages(list(waiting)):
            node = waiting.pop(reply.metadata.reply_to_message_id)
            line: dict[str, Any] = {"node": node, "sent": sent, "received": time.time()}
            if reply.has_error():
                line["error"] = str(reply.error.reason)
            else:
                record = reply.content.config_records.get("status", ConfigRecord())
                line["answer"] = str(record.get("json", ""))[:MOST]
            _print(line)
        time.sleep(_POLL_S)
    _print(END)


def _print(what: Any) -> None:
    sys.stdout.write(f"{MARK}{json.dumps(what)}\n")
    sys.stdout.flush()
