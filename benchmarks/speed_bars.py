"""What the speed benchmark's arms must reach, and a line for each that says whether they do."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from harness import CONSOLE
from speed_start import LIBRARIES

Found = Mapping[tuple[str, int, str], dict[str, Any]]
"""(part, devices, arm) to what was measured."""
HERE, STACKED, NODES = "learner, in process", "learner, 2 workers", "learner, two Ray nodes"
BARE, KD = "bare loop", "DMML-KD, in process"
RATIOS = [
    ("engines", 64, HERE, "plain loop", 0.5),
    ("engines", 64, STACKED, "plain loop", 0.35),
    ("engines", 64, STACKED, "flower", 1 / 30),
    ("engines", 64, HERE, "pfl", 1.0),
    ("engines", 64, HERE, "fluke", 1.0),
    ("engines", 1024, STACKED, "plain loop", 0.4),
    ("engines", 1024, NODES, STACKED, 1.3),
    ("dmml-kd", 12, KD, BARE, 0.6),
    ("dmml-kd", 64, KD, BARE, 0.6),
]
"""Part, devices, an arm, another one, and how many times as long a round of the first may take."""
GROWTH = 1.1
"""How many times as long a device may take among 1,024 as among 64."""
MEMORY_GB = {("engines", 1024): 2.5, ("many", 10_000): 4.0}
"""Of all processes of a learner, by part and devices."""
START_S = {"in process": 5.0, "2 workers": 8.0}
EFFICIENCY = 0.85
CLOSE = 1e-5
"""How much a parameter may differ between the arms."""
LOSSES, ACCURACY = 0.02, 0.05
"""How much DMML-KD may differ from the bare loop: the losses of all rounds by this part in the
mean, the last accuracy by this. Training multiplies rounding: after ten rounds of 12 devices a loss
may differ by a tenth, and so it does between two bare loops that start 1e-7 apart."""


class Judge:
    """Prints bars, and remembers whether all are met."""

    def __init__(self) -> None:
        self.met = True

    def bar(self, text: str, value: float, most: float, *, least: bool = False) -> None:
        """Print one: ``value`` may be ``most``, or has to be that at least."""
        met = value >= most if least else value <= most
        self.met &= met
        verdict = "met" if met else "MISSED"
        CONSOLE.print(f"{text}: {value:.3g} (bar {most:.3g}: {verdict})", highlight=False)

    def speed(self, found: Found) -> None:
        """Compare arms, and judge growth and memory."""
        for part, nodes, arm, other, most in RATIOS:
            if (part, nodes, arm) in found and (part, nodes, other) in found:
                rounds = [found[part, nodes, name]["round_s"] for name in (arm, other)]
                self.bar(f"{nodes:,} devices, {arm} over {other}", rounds[0] / rounds[1], most)
        few, many = ("engines", 64, STACKED), ("engines", 1024, STACKED)
        if few in found and many in found:
            growth = (found[many]["round_s"] / 1024) / (found[few]["round_s"] / 64)
            self.bar(f"time a device, 1,024 over 64, {STACKED}", growth, GROWTH)
        for (part, nodes, arm), result in found.items():
            if (part, nodes) in MEMORY_GB and arm in (HERE, STACKED):
                most = MEMORY_GB[part, nodes]
                self.bar(f"{nodes:,} devices, {arm}, GB of memory", result["peak_gb"], most)

    def equality(self, found: Found) -> None:
        """Ask whether the arms that compute the same have come to the same."""
        for part, nodes in dict.fromkeys((part, nodes) for part, nodes, _ in found):
            arms = {arm: r for (p, n, arm), r in found.items() if (p, n) == (part, nodes)}
            models = {arm: np.array(r["models"]) for arm, r in arms.items() if "models" in r}
            if models:
                by_hand = {arms[arm]["digest"] for arm in models if "learner" not in arm}
                different = max(0, len(by_hand) - 1)
                self.bar(f"{nodes:,} devices, different results by hand", different, 0)
                first = next(iter(models.values()))
                apart = max(float(np.abs(x - first).max()) for x in models.values())
                self.bar(f"{nodes:,} devices, largest difference of a parameter", apart, CLOSE)
            if NODES in arms and STACKED in arms:
                different = arms[NODES]["digest"] != arms[STACKED]["digest"]
                self.bar(f"{nodes:,} devices, different results on two Ray nodes", different, 0)
            if BARE in arms:
                self._trained(nodes, {k: r for k, r in arms.items() if k != BARE}, arms[BARE])

    def _trained(
        self, nodes: int, arms: Mapping[str, dict[str, Any]], bare: dict[str, Any]
    ) -> None:
        """Ask whether DMML-KD has trained as in the bare loop."""
        for arm, result in arms.items():
            losses = np.array(bare["losses"])
            apart = float(np.abs(np.array(result["losses"]) - losses).sum() / losses.sum())
            self.bar(f"{nodes:,} devices, {arm}, mean difference of the losses", apart, LOSSES)
            apart = abs(result["accuracy"] - bare["accuracy"])
            self.bar(f"{nodes:,} devices, {arm}, difference of the accuracy", apart, ACCURACY)

    def starts(self, seconds: Mapping[str, float]) -> None:
        """Judge how long the command takes to its first round."""
        libraries = seconds[LIBRARIES]
        for name, most in START_S.items():
            ratio = f"{seconds[name] / libraries:.2f} x '{LIBRARIES}', {libraries:.1f} s"
            self.bar(f"quickstart, s to the first round, {name} ({ratio})", seconds[name], most)
