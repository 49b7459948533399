"""Phones and watches with flwr-dmml: a device a person."""
