"""Counters of the S3 door, written as Prometheus text (exposition format 0.0.4).

Each worker process has its own Metrics, with one writer: the event loop's thread.
Rendering reads plain dictionaries and belongs on the same thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from itertools import accumulate

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKET_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKET_SECONDS) + 1)  # the last is +Inf's
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKET_SECONDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Call started() when an operation is known, finished() once when its answer has
    left or failed (the finally of the request)."""

    def __init__(self) -> None:
        self._in_flight: dict[str, int] = defaultdict(int)
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._bytes_in: dict[str, int] = defaultdict(int)
        self._bytes_out: dict[str, int] = defaultdict(int)
        self._seconds: dict[str, _Histogram] = defaultdict(_Histogram)

    def started(self, operation: str) -> None:
        self._in_flight[operation] += 1

    def finished(self, operation: str, status: int, seconds: float, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        self._in_flight[operation] -= 1
        self._requests[operation, status] += 1
        self._bytes_in[operation] += bytes_in
        self._bytes_out[operation] += bytes_out
        self._seconds[operation].observe(seconds)

    def render(self, store_counters: Mapping[str, int | float] | None = None) -> bytes:
        """The exposition; `store_counters` (KeymapReader.counters) become
        objfs_store_<name> gauges."""
        lines: list[str] = []
        _head(lines, "objfs_s3_requests_total", "counter", "Requests answered, by operation and status.")
        for (operation, status), count in sorted(self._requests.items()):
            lines.append(f'objfs_s3_requests_total{{operation="{_label(operation)}",status="{status}"}} {count}')
        for name, kind, text, values in (
            ("objfs_s3_requests_in_flight", "gauge", "Requests being answered.", self._in_flight),
            ("objfs_s3_bytes_in_total", "counter", "Bytes of request bodies received.", self._bytes_in),
            ("objfs_s3_bytes_out_total", "counter", "Bytes of response bodies sent.", self._bytes_out),
        ):
            _head(lines, name, kind, text)
            lines += [f'{name}{{operation="{_label(key)}"}} {value}' for key, value in sorted(values.items())]
        self._render_seconds(lines)
        for key, number in sorted((store_counters or {}).items()):
            _head(lines, f"objfs_store_{key}", "gauge", f"The store's {key.replace('_', ' ')}.")
            lines.append(f"objfs_store_{key} {number}")
        return ("\n".join(lines) + "\n").encode()

    def _render_seconds(self, lines: list[str]) -> None:
        name = "objfs_s3_request_seconds"
        _head(lines, name, "histogram", "Seconds from a request's arrival to the end of its answer.")
        for operation, histogram in sorted(self._seconds.items()):
            label = f'operation="{_label(operation)}"'
            sums = list(accumulate(histogram.counts))
            for bound, count in zip((*map(str, BUCKET_SECONDS), "+Inf"), sums, strict=True):
                lines.append(f'{name}_bucket{{{label},le="{bound}"}} {count}')
            lines.append(f"{name}_sum{{{label}}} {histogram.total}")
            lines.append(f"{name}_count{{{label}}} {sums[-1]}")


def _head(lines: list[str], name: str, kind: str, text: str) -> None:
    lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]


def _label(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
