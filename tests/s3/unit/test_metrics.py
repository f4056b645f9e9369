"""The exposition adds up and is well-formed."""

from __future__ import annotations

import re

from gateway.metrics import Metrics


def test_exposition() -> None:
    metrics = Metrics()
    metrics.started("GetObject")
    metrics.started("GetObject")
    metrics.finished("GetObject", 200, 0.003, bytes_out=10)
    metrics.started("PutObject")
    metrics.finished("PutObject", 507, 99.0, bytes_in=7)
    text = metrics.render({"objects": 3}).decode()
    for line in (
        'objfs_s3_requests_total{operation="GetObject",status="200"} 1',
        'objfs_s3_requests_in_flight{operation="GetObject"} 1',
        'objfs_s3_bytes_out_total{operation="GetObject"} 10',
        'objfs_s3_bytes_in_total{operation="PutObject"} 7',
        'objfs_s3_request_seconds_bucket{operation="GetObject",le="0.0025"} 0',
        'objfs_s3_request_seconds_bucket{operation="GetObject",le="0.005"} 1',
        'objfs_s3_request_seconds_bucket{operation="PutObject",le="30.0"} 0',
        'objfs_s3_request_seconds_bucket{operation="PutObject",le="+Inf"} 1',
        'objfs_s3_request_seconds_count{operation="PutObject"} 1',
        "objfs_store_objects 3",
    ):
        assert line in text.splitlines()
    sample = re.compile(r'[a-z0-9_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? [0-9.e+-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in text.splitlines())
