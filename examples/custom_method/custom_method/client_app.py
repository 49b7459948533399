"""What every device runs: the method is found by its entry point."""

from flwr_dmml.clients import make_client_app

app = make_client_app()
