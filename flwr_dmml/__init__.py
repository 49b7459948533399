"""Serverless multi-modal learning on Flower."""

__version__ = "0.1.0"
