"""aws-chunked bodies, sans I/O. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gateway.sigv4 import Identity


class AwsChunkedDecoder:
    """feed() what comes from the socket, iterate the payload pieces, then finish()."""

    def __init__(self, identity: Identity, *, decoded_length: int, trailer_names: Sequence[str] = ()) -> None:
        """decoded_length: x-amz-decoded-content-length; trailer_names: x-amz-trailer, lower case."""
        self.trailers: dict[str, str] = {}  # complete after finish(); names lower case

    def feed(self, data: bytes | memoryview) -> Iterator[memoryview]:
        """Payload pieces (views of `data`). Iterate to the end. Raises S3Error."""
        raise NotImplementedError

    def finish(self) -> None:
        """At the end of the body. Raises IncompleteBody."""
        raise NotImplementedError
