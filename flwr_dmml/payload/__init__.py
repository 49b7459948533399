"""Payloads: a model as named blocks, their compression, and the plan of a round."""
