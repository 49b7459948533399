"""Gossip rules: how parameters move between neighbours, whatever a device learns from."""
