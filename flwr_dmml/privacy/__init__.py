"""Differential privacy of single training samples: noise, its accounting, and its settings."""
