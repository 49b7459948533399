"""Gossip rules: how near they come to a known optimum, and what they learn from different data.

    python benchmarks/gossip.py [--parts optimum learning] [--rules k-gt d2] [--quick]

``optimum`` is described in gossip_optimum.py, ``learning`` in gossip_learning.py; each takes
minutes on one core. Prints tables and a line for each bar that is missed,
and exits with 1 if there is one. ``--quick`` is a smoke run of both, not judged.
"""

import argparse
import sys

import gossip_learning
import torch
from gossip_optimum import ENTRIES, GRAPHS, tables
from harness import CONSOLE
from judging import verdict


def main() -> int:
    """Run what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parts, rules = ["optimum", "learning"], list(dict.fromkeys(e.rule for e in ENTRIES))
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--graphs", nargs="+", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--rules", nargs="+", choices=rules, default=rules, help="of the optimum")
    parser.add_argument(
        "--arms", nargs="+", choices=gossip_learning.ARMS, default=[*gossip_learning.ARMS],
        help="of learning; judged if all are run",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of learning")
    parser.add_argument("--quick", action="store_true", help="a smoke run, not judged")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    if "optimum" in given.parts:
        found, wrong = tables(given.graphs, given.rules, quick=given.quick)
        for table in found:
            CONSOLE.print(table)
    if "learning" in given.parts:
        table, missed = gossip_learning.compare(given.seeds, given.arms, quick=given.quick)
        CONSOLE.print(table)
        wrong += missed
    if given.quick:
        return 0
    return verdict(wrong)


if __name__ == "__main__":
    sys.exit(main())
