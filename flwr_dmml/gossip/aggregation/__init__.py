"""Aggregation rules: how a device combines the neighbours' copies of a block with its own."""
