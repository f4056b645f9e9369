"""Prometheus text exposition. Signatures first; the bodies follow."""

from __future__ import annotations

from collections.abc import Mapping


class Metrics:
    def started(self, operation: str) -> None: ...
    def finished(
        self, operation: str, status: int, seconds: float, *, bytes_in: int = 0, bytes_out: int = 0
    ) -> None: ...
    def render(self, store_counters: Mapping[str, int | float] | None = None) -> bytes: ...


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
