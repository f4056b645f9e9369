"""Erasure coding: k data and m parity fragments of equal length, as plain bytes.

Pure functions. The codec is liberasurecode with ISA-L (pyeclib); its 80-byte fragment
headers are stripped after encoding and made again for decoding, so that nothing on disk
depends on that library. The code is systematic: the data fragments are the data, cut in
k and padded with zeros. k = 1 is plain replication.

pyeclib holds the GIL while it works (0.3 ms a MiB) and checks no payloads: hand over only
fragments that were verified.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version

from pyeclib.ec_iface import ECDriver

from engine.errors import StoreError
from engine.interfaces import Buffer

DEFAULT_CODE = "isa_l_rs_cauchy"
CODES = (DEFAULT_CODE, "isa_l_rs_vand_inv", "isa_l_rs_vand")
FRAGMENTS_MAX = 256  # liberasurecode 1.8
LIBRARY = f"pyeclib {version('pyeclib')}"
_HEADER_BYTES = 80  # liberasurecode's fragment_header_t


def check_code(k: int, m: int, code: str = DEFAULT_CODE) -> None:
    """Raises StoreError if no segment can be written so."""
    if code not in CODES:
        raise StoreError(f"erasure code {code!r} is not known; choose one of {', '.join(CODES)}")
    if k < 1 or m < 1:
        raise StoreError(f"code {k}+{m} needs at least one data and one parity fragment")
    if k + m > FRAGMENTS_MAX:
        raise StoreError(f"code {k}+{m} has more than {FRAGMENTS_MAX} fragments")
    if code == "isa_l_rs_vand" and m >= 5:
        raise StoreError(f"isa_l_rs_vand cannot decode every loss with m = {m}; choose {DEFAULT_CODE}")


def fragment_length(data_length: int, k: int) -> int:
    return -(-data_length // k)


def encode(data: bytes, k: int, m: int, code: str = DEFAULT_CODE) -> list[Buffer]:
    """The k+m fragments of `data` (not empty), each of fragment_length(len(data), k) bytes."""
    assert data, "there is nothing to encode"
    if k == 1:
        return [data] * (1 + m)
    fragments = _driver(k, m, code).encode(data)
    length = fragment_length(len(data), k)
    assert len(fragments) == k + m and all(len(one) == _HEADER_BYTES + length for one in fragments)
    return [memoryview(one)[_HEADER_BYTES:] for one in fragments]


def decode(fragments: Mapping[int, Buffer], k: int, m: int, code: str = DEFAULT_CODE) -> bytes:
    """The data, with its padding (k times the fragment length), from any k fragments by
    index. They must have been verified."""
    assert len(fragments) >= k, "fewer than k fragments"
    if all(index in fragments for index in range(k)):
        return b"".join([fragments[index] for index in range(k)])
    if k == 1:
        return bytes(next(iter(fragments.values())))
    length = len(next(iter(fragments.values())))
    headers = _headers(k, m, code, length)
    chosen = [b"".join((headers[index], fragments[index])) for index in sorted(fragments)[:k]]
    data: bytes = _driver(k, m, code).decode(chosen)
    assert len(data) == k * length
    return data


def decode_missing(
    fragments: Mapping[int, Buffer], missing: list[int], k: int, m: int, code: str = DEFAULT_CODE
) -> dict[int, Buffer]:
    """The fragments of the indexes in `missing`, from any k verified others."""
    rebuilt = encode(decode(fragments, k, m, code), k, m, code)
    return {index: rebuilt[index] for index in missing}


@lru_cache(maxsize=64)
def _driver(k: int, m: int, code: str) -> ECDriver:
    check_code(k, m, code)
    return ECDriver(k=k, m=m, ec_type=code, chksum_type="none")


@lru_cache(maxsize=64)
def _headers(k: int, m: int, code: str, length: int) -> list[bytes]:
    """liberasurecode's headers for fragments of `length` bytes. Without payload checksums
    they are the same for any data of this length; let the library write them for zeros."""
    return [bytes(one[:_HEADER_BYTES]) for one in _driver(k, m, code).encode(bytes(k * length))]
