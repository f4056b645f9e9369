"""The Range header (RFC 9110 §14) as S3 treats it. Pure."""

from __future__ import annotations

import re

from msgspec import Struct

from gateway.errors import S3Error

_BYTES = re.compile(r"^bytes=\s*(\d*)-(\d*)\s*$", re.ASCII | re.IGNORECASE)
_SOURCE = re.compile(r"^bytes=(\d+)-(\d+)$", re.ASCII)


class ByteRange(Struct, frozen=True):
    """Bytes [start, start+length) of `size`."""

    start: int
    length: int
    size: int

    @property
    def content_range(self) -> str:
        return f"bytes {self.start}-{self.start + self.length - 1}/{self.size}"


def parse_range(header: str | None, size: int) -> ByteRange | None:
    """The range to answer with 206, or None for the whole object with 200.

    Several ranges, other units and invalid syntax are ignored, as S3 does and RFC 9110
    allows. Raises InvalidRange (416) when no byte of the object is asked for."""
    if header is None:
        return None
    match = _BYTES.match(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        length = min(int(last), size)
        if length == 0:
            raise _unsatisfiable(header, size)
        return ByteRange(size - length, length, size)
    start = int(first)
    if last != "" and int(last) < start:
        return None
    if start >= size:
        raise _unsatisfiable(header, size)
    end = size - 1 if last == "" else min(int(last), size - 1)
    return ByteRange(start, end - start + 1, size)


def parse_copy_range(header: str, size: int) -> ByteRange:
    """x-amz-copy-source-range of UploadPartCopy: exactly bytes=first-last, within the
    source. Raises InvalidArgument, or InvalidRange beyond the source's end."""
    match = _SOURCE.match(header.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise S3Error(
            "InvalidArgument",
            "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the "
            "zero-based offsets of the first and last bytes to copy",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=header,
        )
    start, last = int(match[1]), int(match[2])
    if last >= size:
        raise S3Error(
            "InvalidArgument",
            f"Range specified is not valid for source object of size: {size}",
            ArgumentName="x-amz-copy-source-range",
            ArgumentValue=header,
        )
    return ByteRange(start, last - start + 1, size)


def _unsatisfiable(header: str, size: int) -> S3Error:
    return S3Error(
        "InvalidRange",
        headers={"Content-Range": f"bytes */{size}"},
        RangeRequested=header,
        ActualObjectSize=str(size),
    )
