"""Where S3 listens: parsing the address, reserving the port, asking whether it answers.

The port is reserved by a socket that is bound with SO_REUSEPORT and never listens: the
workers bind the same address, the kernel spreads connections over those that listen, and
nobody else's server can take the port while a worker restarts.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from engine.errors import StoreError

HEALTH_PATH = "/_objfs/health"
ANSWER_SECONDS_MAX = 2.0


class BadAddress(StoreError):
    """The address to listen on is wrong, taken or not of this machine."""


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def reachable(self) -> Address:
        """Where a client on this machine finds a server that listens on every address."""
        return Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), self.port)


def parse_address(text: str) -> Address:
    """ADDRESS:PORT; an IPv6 address stands in brackets. Raises BadAddress."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise BadAddress(f"--listen {text}: write an IPv6 address in brackets, such as [::1]:9000")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise BadAddress(f"--listen {text} is not ADDRESS:PORT, such as 127.0.0.1:9000")
    return Address(host, int(port))


@contextmanager
def reserved(address: Address) -> Iterator[Address]:
    """The address with its real host and port, ours while inside. Raises BadAddress."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # Without SO_REUSEPORT: fails if anybody listens there, one of ours included.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            host, port = probe.getsockname()[:2]
    except OSError as error:
        raise BadAddress(f"cannot listen on {address}: {error.strerror}; choose another with --listen") from None
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((host, port))
        yield Address(host, port)


def answers(address: Address) -> bool:
    """Whether a gateway at `address` says it is healthy."""
    place = address.reachable
    connection = http.client.HTTPConnection(place.host, place.port, timeout=ANSWER_SECONDS_MAX)
    try:
        connection.request("GET", HEALTH_PATH)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
