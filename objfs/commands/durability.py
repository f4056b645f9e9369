"""objfs durability: how likely objects are to be lost, for the store at hand or a hypothetical one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from engine.measured import read_measured
from objfs.cli import CommandFailed
from objfs.commands.stores import parse_code
from objfs.durability.assessment import Assessment, assess, curve
from objfs.durability.at_hand import measured_figures, read_layout, stored_bytes
from objfs.durability.figures import DEFAULTS, make_figures
from objfs.durability.layout import Layout, hypothetical_places, make_layout
from objfs.durability.report import as_json, render
from objfs.parsing import DEFAULT_CODE

CURVE_TRIALS_SHARE = 5  # a curve has many points: each gets this fraction of the trials
CURVE_TRIALS_MIN = 2000


def durability(arguments: argparse.Namespace) -> int:
    if arguments.json and arguments.chart:
        raise CommandFailed("--json prints one JSON object and --chart a drawing; give one of them, or --plot FILE")
    data = Path(arguments.data)
    given = {name: float(getattr(arguments, name)) for name in DEFAULTS if getattr(arguments, name) is not None}
    measured = read_measured(data)
    hypothetical = arguments.code or arguments.nodes or arguments.domains or arguments.domain
    layout = hypothetical_layout(arguments) if hypothetical else read_layout(data)
    counted: dict[str, float] = {}
    if not hypothetical and "node_bytes" not in given and not measured.stored_bytes_per_node:
        counted["node_bytes"] = float(stored_bytes(data))
    figures = make_figures(given, measured_figures(measured, with_stored=not hypothetical), counted)
    assessment = assess(layout, figures, arguments.trials, arguments.seed, measured.scrub_bytes_per_second)
    drawings = _draw(arguments, assessment) if arguments.plot or arguments.chart else ""
    print(json.dumps(as_json(assessment), indent=2) if arguments.json else render(assessment))
    if drawings:
        print("\n" + drawings)
    return 0


def _draw(arguments: argparse.Namespace, assessment: Assessment) -> str:
    """Write the PNG if one is asked for; the terminal's chart if that is."""
    from objfs.durability.plot import terminal_chart, write_png

    trials = max(arguments.trials // CURVE_TRIALS_SHARE, CURVE_TRIALS_MIN)
    points = curve(assessment.layout, assessment.figures, trials, arguments.seed)
    if arguments.plot:
        write_png(Path(arguments.plot), assessment, points)
    return terminal_chart(assessment, points) if arguments.chart else ""


def hypothetical_layout(arguments: argparse.Namespace) -> Layout:
    k, m = parse_code(arguments.code or DEFAULT_CODE)
    named = arguments.domain
    if named and arguments.domains:
        raise CommandFailed("--domains deals nodes to racks and --domain names each node's; give one of them")
    if named and arguments.nodes not in (None, len(named)):
        raise CommandFailed(f"--nodes {arguments.nodes} but {len(named)} times --domain; give --domain once per node")
    for domain in named:
        if len(domain.split("/")) > 3 or not all(domain.split("/")):
            raise CommandFailed(f"--domain {domain} is not ZONE, ZONE/RACK or ZONE/RACK/HOST")
    nodes = arguments.nodes or len(named) or k + m
    if arguments.domains and arguments.domains > nodes:
        raise CommandFailed(f"--domains {arguments.domains} are more than the {nodes} nodes; give fewer")
    notes = []
    if not named and not arguments.domains:
        notes.append("no domains given: every node counts as a host and a rack of its own; see --domains")
    return make_layout(k, m, hypothetical_places(nodes, arguments.domains, named), "a hypothetical layout", notes)
