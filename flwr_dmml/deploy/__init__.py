"""Trained models: their files, predictions from raw inputs, and other formats."""
