"""What every device runs."""

from flwr_dmml.clients import make_client_app

app = make_client_app()
