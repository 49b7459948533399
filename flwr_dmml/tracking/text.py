"""A round in one line of text."""

from .records import RoundRecord


def describe(record: RoundRecord) -> str:
    """Return one line for the log; only for an evaluated round."""
    apart = record.consensus_distance
    distance = "" if apart is None else f"consensus distance {apart:.3g} | "
    by_modality = "  ".join(f"{m} {a:.3f}" for m, a in record.accuracy_by_modality.items())
    by_set = "  ".join(f"{m} {a:.3f}" for m, a in record.accuracy_by_set.items())
    return (
        f"accuracy mean {record.accuracy or 0:.3f}  min {record.min_accuracy or 0:.3f}  "
        f"max {record.max_accuracy or 0:.3f} | devices with {by_set} | "
        f"from {by_modality} alone | {_missing(record)}{distance}"
        f"{record.bytes_sent / 1e3:.1f} kB sent per device | {_energy(record)}"
    )


def _missing(record: RoundRecord) -> str:
    """Return the accuracies with modalities missing, where they say anything new."""
    one = "  ".join(f"{m} {a:.3f}" for m, a in record.accuracy_without.items())
    text = f"without {one} | " if one else ""
    if record.accuracy_missing is not None:
        return f"some inputs missing {record.accuracy_missing:.3f} | {text}"
    return text if any(len(node.accuracy_without) > 2 for node in record.nodes) else ""


def _energy(record: RoundRecord) -> str:
    """Return what the run has taken so far, and how this round was balanced."""
    updates = "  ".join(f"{m} {u:.1f}" for m, u in record.updates_by_modality.items())
    spent = f"{record.compute_j:.3g} computing and {record.radio_j:.3g} sending in this round"
    took = f"{record.total_simulated_s:.3g} s on the devices"
    parts = [f"{record.total_j:.3g} J ({spent}), {took}", f"iterations {updates}"]
    if record.total_measured_j is not None:
        parts.insert(1, f"meters counted {record.total_measured_j:.3g} J of computing")
    if record.battery_quantiles_j:
        low, _, median, _, high = record.battery_quantiles_j
        parts.insert(1, f"batteries {low:.3g} to {high:.3g} J, median {median:.3g}")
    if record.balance is not None:
        parts.append(f"balance {record.balance:.2f}")
    return " | ".join(parts)
