"""Setup of a device's Zenoh sessions: endpoints, and access control in both directions."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import zenoh

from .routes import OPEN_S, Route, Unreachable
from .tls import DirectError, Tls

ROOM = 1 << 16  # for what stands around a letter: its key, its signature and certificate
ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def parse_address(text: str) -> tuple[str, int]:
    """Read ``host:port``; an IPv6 address stands in brackets and is returned with them.

    Raises
    ------
    ValueError
        If it is none.
    """
    match = ADDRESS.fullmatch(text)
    if not match or not 0 < int(match[2]) < 1 << 16:
        raise ValueError(f"{text!r} is no address: host:port, port from 1 to 65535")
    return match[1], int(match[2])


class Network:
    """Setup of the sessions of one device.

    Zenoh's access control refuses everything that is not named below. A link to a neighbour carries
    only the replies on its key, with TLS only from the device whose name its certificate has. This
    device receives only queries for its own key.
    """

    def __init__(self, run: str, partition: int, tls: Tls | None, limit: int) -> None:
        self.partition, self._tls, self._limit = partition, tls, limit
        self._prefix = f"dmml/{quote(run, safe='')}"

    def key(self, partition: int) -> str:
        """Return the key under which a device's letters stand, each under its round."""
        return f"{self._prefix}/{partition}"

    def direct(self, peer: int, address: str) -> Route:
        """Return the route to a neighbour with an address."""
        name = f"device-{peer}" if self._tls else ""
        rules = self._asks(f"{self.key(peer)}/*")
        settings = self._settings("client", rules, connect=address, name=name)
        return Route(settings, address, shared=False)

    def router(self, address: str, serve: Callable[[zenoh.Session], object]) -> Route:
        """Return the route to a router, over which this device asks and answers."""
        rules = self._asks(f"{self._prefix}/*/*") + self._answers()
        return Route(self._settings("client", rules, connect=address), address, serve)

    def own(self, listen: str, multicast: bool, serve: Callable[[zenoh.Session], object]) -> Route:
        """Return the route over which others come to this device.

        Raises
        ------
        DirectError
            If it cannot listen there.
        """
        listen = f"127.0.0.1{listen}" if listen.startswith(":") else listen
        rules = self._answers() + (self._asks(f"{self._prefix}/*/*") if multicast else [])
        settings = self._settings("peer", rules, listen=listen)
        settings["scouting/multicast/enabled"] = multicast
        if not multicast:
            settings["transport/link/rx/max_message_size"] = ROOM
        route = Route(settings, opened=serve)
        try:
            route.session()
        except Unreachable as error:
            raise DirectError(f"cannot listen at {listen!r}: {error.__cause__}") from error
        return route

    def _asks(self, keys: str) -> list[dict[str, Any]]:
        return [
            _allow("egress", ["query"], keys),
            _allow("ingress", ["reply", "declare_queryable"], keys),
        ]

    def _answers(self) -> list[dict[str, Any]]:
        keys = f"{self.key(self.partition)}/*"
        return [
            _allow("ingress", ["query"], keys),
            _allow("egress", ["reply", "declare_queryable"], keys),
        ]

    def _settings(
        self,
        mode: str,
        rules: list[dict[str, Any]],
        *,
        listen: str = "",
        connect: str = "",
        name: str = "",
    ) -> dict[str, object]:
        settings: dict[str, object] = {
            "mode": mode,
            "listen/endpoints": [self._endpoint(listen)] if listen else [],
            "connect/endpoints": [self._endpoint(connect)] if connect else [],
            "connect/timeout_ms": 0,
            "scouting/multicast/enabled": False,
            "scouting/gossip/enabled": False,
            "open/return_conditions/connect_scouted": False,
            "transport/shared_memory/enabled": False,
            "transport/unicast/open_timeout": int(OPEN_S * 1000),
            "transport/unicast/accept_timeout": int(OPEN_S * 1000),
            "transport/link/rx/max_message_size": self._limit + ROOM,
            "access_control": {
                "enabled": True,
                "default_permission": "deny",
                "rules": rules,
                "subjects": [{"id": "who", **({"cert_common_names": [name]} if name else {})}],
                "policies": [{"rules": [rule["id"] for rule in rules], "subjects": ["who"]}],
            },
        }
        if self._tls:
            certificate, key = str(self._tls.certificate), str(self._tls.key)
            settings["transport/link/tls"] = {
                "root_ca_certificate": str(self._tls.ca),
                "listen_certificate": certificate,
                "listen_private_key": key,
                "connect_certificate": certificate,
                "connect_private_key": key,
                "enable_mtls": True,
                "verify_name_on_connect": True,
            }
        return settings

    def _endpoint(self, address: str) -> str:
        host, port = parse_address(address)
        return f"{'tls' if self._tls else 'tcp'}/{host}:{port}"


def _allow(flow: str, messages: list[str], keys: str) -> dict[str, Any]:
    return {
        "id": f"{flow} {keys} {messages[0]}",
        "permission": "allow",
        "flows": [flow],
        "messages": messages,
        "key_exprs": [keys],
    }
