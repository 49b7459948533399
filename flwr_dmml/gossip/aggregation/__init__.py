"""Aggregation rules: what a device makes of the neighbours' copies of a block."""
