"""Topologies, mixing weights, spectral gaps, and positions of devices."""
