"""The status page for people."""

from __future__ import annotations

from objfs.render import node_rows, render_status, size

REPORT = {
    "store_id": "0123",
    "code": "4+2",
    "health": "degraded",
    "nodes": [
        {
            "id": "node1",
            "path": "/d/1",
            "domain": "a/r1/h1",
            "state": "healthy",
            "drains_again": False,
            "used_bytes": 3 * 1024**2,
        },
        {"id": "node2", "path": "/d/2", "domain": "", "state": "lost", "drains_again": True, "used_bytes": None},
    ],
    "warnings": ["all nodes lie on one device"],
    "under_redundancy": 17,
    "protection": {"-1": 1, "0": 5, "1": 11},
    "objects_below": {"-1": 3},
    "under_way": [
        {"what": "repair", "done": 25, "total": 100, "unit": "bytes", "bytes_per_second": 2048.0, "seconds_left": 12.4}
    ],
    "scrub": {"oldest_checked_ns": 1, "unchecked_segments": 2},
    "quarantined": 4,
    "space": {"content_total": 10 * 1024**3, "content_free": 9 * 1024**3},
    "reserved": 0,
    "objects": 1234,
    "versions": 1300,
    "logical_bytes": 5_000_000,
    "unique_bytes": 2_500_000,
    "frame_bytes": 1_250_000,
    "node_bytes": 1_900_000,
    "dedup_ratio": 2.0,
    "compression_ratio": 2.0,
    "journal": {"ordered_lsn": 99, "durable_lsn": 99, "lag_records": 0},
    "tables": {"lag_records": None},
    "oldest_pin": None,
    "hidden_keys": 3,
}


def test_the_page_names_what_is_lost_and_what_is_not_fully_protected() -> None:
    page = render_status(REPORT)
    assert "degraded, 17 stripes or journal records below full protection" in page
    assert "all nodes lie on one device" in page
    assert "1 stripes cannot be read now" in page
    assert "5 stripes survive no more loss" in page and "11 stripes survive 1 more lost node" in page
    assert "3 objects cannot be read now" in page
    assert "25% done, 2.0 KiB/s, 12 s left" in page
    assert "2 segments were never scrubbed" in page and "4 damaged files" in page
    assert "1,234 (1,300 versions)" in page
    assert "2.00 : 1" in page
    assert "3 (no path at the mount)" in page
    assert [line.split() for line in page.splitlines()[-2:]] == [
        ["node1", "healthy", "3.0", "MiB", "a/r1/h1", "/d/1"],
        ["node2", "lost,", "draining", "-", "-", "/d/2"],
    ]


def test_sizes_are_given_in_the_largest_unit_that_fits() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1536, 1024**4, 1024**7)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "1.0 TiB",
        "1024.0 EiB",
    ]


def test_columns_of_the_node_table_line_up() -> None:
    assert [len(row) for row in node_rows(REPORT["nodes"])] == [5, 5, 5]  # type: ignore[arg-type]
