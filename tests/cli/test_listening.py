"""The address S3 listens on."""

from __future__ import annotations

import socket

import pytest

from objfs.listening import Address, BadAddress, answers, parse_address, reserved


def test_addresses_are_read_and_shown_alike() -> None:
    for text in ("127.0.0.1:9000", "[::1]:9000", "localhost:0", "0.0.0.0:80"):
        assert str(parse_address(text)) == text
    for wrong in ("9000", ":9000", "127.0.0.1", "127.0.0.1:", "::1:9000", "127.0.0.1:65536", "127.0.0.1:x"):
        with pytest.raises(BadAddress):
            parse_address(wrong)


def test_port_0_takes_a_free_one_and_keeps_it() -> None:
    with reserved(Address("127.0.0.1", 0)) as address:
        assert address.port > 0
        with socket.socket() as stranger, pytest.raises(OSError):
            stranger.bind(("127.0.0.1", address.port))
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            worker.bind(("127.0.0.1", address.port))


def test_a_port_somebody_listens_on_is_refused_in_words() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = Address("127.0.0.1", stranger.getsockname()[1])
        with pytest.raises(BadAddress, match="in use"), reserved(taken):
            pass


def test_nobody_there_does_not_answer() -> None:
    with reserved(Address("127.0.0.1", 0)) as address:
        assert not answers(address)
