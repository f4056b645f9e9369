"""Fragments out of fragments, for scrub and repair: at the speed of memory, without the GIL.

pyeclib (engine/coding.py) reaches 0.7 GB/s with fresh buffers for every call and holds the
GIL; ISA-L itself, the library its wheel brings along, 30 GB/s. So scrub and repair call
ISA-L directly where that library is found and the code is its Cauchy matrix, and pyeclib
otherwise; both give the same bytes (tests/unit/test_recoding.py). Any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cffi
import pyeclib

from engine.coding import DEFAULT_CODE, check_code, decode_missing
from engine.interfaces import Buffer

_DECLARATIONS = """
void ec_encode_data(int length, int k, int rows, unsigned char *tables, unsigned char **data, unsigned char **coded);
void ec_init_tables(int k, int rows, unsigned char *matrix, unsigned char *tables);
void gf_gen_cauchy1_matrix(unsigned char *matrix, int rows, int k);
int gf_invert_matrix(unsigned char *matrix, unsigned char *inverse, const int k);
unsigned char gf_mul(unsigned char a, unsigned char b);
"""
_TABLE_BYTES = 32  # of ISA-L, for each coefficient
_ffi = cffi.FFI()
_ffi.cdef(_DECLARATIONS)


def recompute(
    fragments: Mapping[int, Buffer], wanted: Sequence[int], k: int, m: int, code: str = DEFAULT_CODE
) -> dict[int, Buffer]:
    """The fragments of the indexes in `wanted`, from any k verified ones by index."""
    assert len(fragments) >= k, "fewer than k fragments"
    if not wanted:
        return {}
    if k == 1:
        return dict.fromkeys(wanted, next(iter(fragments.values())))
    sources = tuple(sorted(fragments)[:k])
    library = _library()
    if library is None or code != DEFAULT_CODE:
        return decode_missing({index: bytes(fragments[index]) for index in sources}, list(wanted), k, m, code)
    length = len(fragments[sources[0]])
    made = [bytearray(length) for _ in wanted]
    read_from = [_ffi.from_buffer(fragments[index]) for index in sources]
    written_to = [_ffi.from_buffer(one) for one in made]
    library.ec_encode_data(
        length,
        k,
        len(made),
        _tables(k, m, sources, tuple(wanted)),
        _ffi.new("unsigned char *[]", [_ffi.cast("unsigned char *", one) for one in read_from]),
        _ffi.new("unsigned char *[]", [_ffi.cast("unsigned char *", one) for one in written_to]),
    )
    return dict(zip(wanted, made, strict=True))


@lru_cache(maxsize=1)
def _library() -> Any:
    """ISA-L as pyeclib's wheel brings it, or None (another build of pyeclib)."""
    folder = Path(pyeclib.__file__).parent.parent / "pyeclib.libs"
    for path in sorted(folder.glob("libisal*")):
        try:
            return _ffi.dlopen(str(path))
        except OSError:
            continue
    return None


@lru_cache(maxsize=1024)
def _tables(k: int, m: int, sources: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    """What multiplies the fragments `sources` to those in `wanted`."""
    check_code(k, m)
    library = _library()
    rows = k + m
    matrix = _ffi.new("unsigned char[]", rows * k)
    library.gf_gen_cauchy1_matrix(matrix, rows, k)
    chosen = _ffi.new("unsigned char[]", b"".join(bytes(_ffi.buffer(matrix + i * k, k)) for i in sources))
    inverse = _ffi.new("unsigned char[]", k * k)
    assert library.gf_invert_matrix(chosen, inverse, k) == 0, "any k rows of a Cauchy matrix can be inverted"
    coefficients = bytearray()
    for index in wanted:
        for column in range(k):
            value = 0
            for inner in range(k):
                value ^= library.gf_mul(matrix[index * k + inner], inverse[inner * k + column])
            coefficients.append(value)
    tables = _ffi.new("unsigned char[]", _TABLE_BYTES * k * len(wanted))
    library.ec_init_tables(k, len(wanted), _ffi.from_buffer(coefficients), tables)
    return tables
