"""Text for people out of what `objfs status --json` holds. Pure functions; no store here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def render_status(report: Mapping[str, Any]) -> str:
    """The page `objfs status` prints."""
    journal, tables, space = report["journal"], report["tables"], report["space"]
    facts = [
        ("store", f"{report['store_id']}, code {report['code']}"),
        ("health", _health(report)),
        *_protection(report),
        ("objects", f"{report['objects']:,} ({report['versions']:,} versions)"),
        ("content", f"{size(report['logical_bytes'])}, of which {size(report['unique_bytes'])} unique"),
        ("deduplication", f"{report['dedup_ratio']:.2f} : 1"),
        ("compression", f"{report['compression_ratio']:.2f} : 1"),
        ("on nodes", f"{size(report['node_bytes'])}, {size(report['reserved'])} of it in reserve"),
        ("room", f"for {size(space['content_free'])} more content, of {size(space['content_total'])}"),
        ("journal", f"LSN {journal['ordered_lsn']:,}, {_behind(journal['lag_records'])} in sync"),
        ("tables", f"{_behind(tables['lag_records'])} the journal"),
        ("oldest pin", "none" if report["oldest_pin"] is None else str(report["oldest_pin"])),
        ("hidden keys", f"{report['hidden_keys']:,}" + (" (no path at the mount)" if report["hidden_keys"] else "")),
    ]
    lines = [f"{name + ':' if name else '':<15}{value}" for name, value in facts]
    lines += [f"{'note:':<15}{warning}" for warning in report["warnings"]]
    return "\n".join([*lines, "", columns(node_rows(report["nodes"]))])


def _protection(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is below full protection, what care is at it, and what was set aside."""
    facts = [
        ("below that", f"{stripes:,} stripes {_losses(int(left))}") for left, stripes in report["protection"].items()
    ]
    for left, objects in (report["objects_below"] or {}).items():
        facts.append(("", f"{objects:,} objects {_losses(int(left))}; SELECT * FROM protection names them"))
    for work in report["under_way"]:
        share = f"{work['done'] / work['total']:.0%} done" if work["total"] else "begun"
        rate = f", {size(int(work['bytes_per_second']))}/s" if work["bytes_per_second"] else ""
        left = "" if work["seconds_left"] is None else f", {work['seconds_left']:.0f} s left"
        facts.append((work["what"], f"{share}{rate}{left}"))
    scrubbed = report["scrub"]
    if scrubbed["unchecked_segments"]:
        facts.append(("unchecked", f"{scrubbed['unchecked_segments']:,} segments were never scrubbed"))
    if report["quarantined"]:
        facts.append(("set aside", f"{report['quarantined']:,} damaged files; objfs quarantine list shows them"))
    return facts


def _losses(left: int) -> str:
    if left < 0:
        return "cannot be read now"
    return "survive no more loss" if left == 0 else f"survive {left} more lost node{'s' if left > 1 else ''}"


def node_rows(nodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A heading and one row per node."""
    rows: list[tuple[str, ...]] = [("NODE", "STATE", "HOLDS", "DOMAIN", "PATH")]
    for node in nodes:
        used = node["used_bytes"]
        state = f"{node['state']}, draining" if node["drains_again"] else node["state"]
        rows.append((node["id"], state, "-" if used is None else size(used), node["domain"] or "-", node["path"]))
    return rows


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in aligned columns, two spaces apart."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def size(count: int) -> str:
    """Bytes in the largest unit that keeps them at 1 or more: 1536 → "1.5 KiB"."""
    amount, unit = float(count), 0
    while amount >= 1024 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{count} B" if unit == 0 else f"{amount:.1f} {_UNITS[unit]}"


def _health(report: Mapping[str, Any]) -> str:
    under = report["under_redundancy"]
    return f"{report['health']}, {under:,} stripes or journal records below full protection"


def _behind(records: int | None) -> str:
    if records is None:
        return "not running, behind"
    return "0 records behind" if records == 0 else f"{records:,} records behind"
