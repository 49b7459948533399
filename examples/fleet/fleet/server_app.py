"""What the coordinator runs: it plans rounds and passes messages on, it never averages a model."""

from flwr_dmml.strategies import make_server_app

app = make_server_app()
