"""The round plan on the coordinator, and the ServerApp."""

from .app import make_server_app
from .peer import PeerStrategy
from .roster import NoDevicesError

__all__ = ["NoDevicesError", "PeerStrategy", "make_server_app"]
