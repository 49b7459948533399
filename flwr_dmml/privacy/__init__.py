"""Differential privacy, noise that cancels, and success of attacks: no more than mathematics."""
