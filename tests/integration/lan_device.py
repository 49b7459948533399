"""A device of its own process, in a namespace: publishes and collects letters as it is told.

Run with its partition id and address; then a line of JSON on standard input for each call, and one
on standard output for what came of it.
"""

import json
import sys

import torch

from flwr_dmml.transport.direct.link import DirectLink
from flwr_dmml.transport.letter import Letter


def main() -> None:
    partition, listen = int(sys.argv[1]), sys.argv[2]
    with DirectLink("run", partition, listen=listen) as link:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            call, *arguments = json.loads(line)
            if call == "publish":
                server_round, length = arguments
                numbers = torch.arange(length, dtype=torch.float32) + server_round
                said: object = link.publish(Letter("run", partition, server_round, {"x": numbers}))
            else:
                peers, *others = arguments
                letters, missing = link.collect({int(p): a for p, a in peers.items()}, *others)
                said = (
                    {p: float(one.tensors["x"].double().sum()) for p, one in letters.items()},
                    missing,
                )
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
