"""What can be typed to keep a store well: nodes that change, durability, collection,
checkpoints, scrub and repair. See objfs/cli.py.
"""

from __future__ import annotations

from objfs.parsing import DEFAULT_CODE, Commands, command, group, quantity, share


def add_node_changes(node: Commands) -> None:
    add = command(
        node,
        "add",
        "nodes:add",
        "add a node",
        "Makes an empty directory a node of the store. New content uses it at once; objfs node rebalance moves older "
        "content there too.",
    )
    add.add_argument("path", metavar="PATH[=ZONE/RACK/HOST]", help="the directory, made if missing, and where it is")
    drain = command(
        node,
        "drain",
        "nodes:drain",
        "move everything off a node",
        "Writes nothing new to the node and copies what it holds elsewhere; then objfs node remove takes it away.",
    )
    drain.add_argument("--cancel", action="store_true", help="use the node as before again")
    remove = command(
        node,
        "remove",
        "nodes:remove",
        "take away a node that is drained or lost",
        "Forgets a node that was drained, or one that is lost for good: what it held is rebuilt elsewhere first.",
    )
    domain = command(
        node,
        "set-domain",
        "nodes:set_domain",
        "say where a node is",
        "Sets what fails together with the node, and moves fragments that now are too many in one place.",
    )
    for parser in (drain, remove, domain):
        parser.add_argument("node_id", metavar="NODE", help="the node's id, as objfs node list shows it")
    domain.add_argument("domain", metavar="ZONE/RACK/HOST", help="where the node is; '' for nowhere in particular")
    rebalance = command(
        node,
        "rebalance",
        "nodes:rebalance",
        "even out what the nodes hold",
        "Moves fragments from the fullest to the emptiest nodes, and out of places that hold too many of a segment.",
    )
    for parser in (drain, remove, domain, rebalance):
        parser.add_argument(
            "--limit",
            type=quantity("size"),
            default="100MB",
            metavar="RATE",
            help="copy at most so much a second (default %(default)s)",
        )


def add_durability(commands: Commands) -> None:
    parser = command(
        commands,
        "durability",
        "durability:durability",
        "say how likely objects are to be lost",
        "Computes the chance that an object is lost within a year: by closed form, Markov chain and Monte Carlo, for "
        "disks failing alone and for failures that come together. Without --code, --nodes, --domains or --domain it "
        "is about the store at hand, which it neither locks nor opens.",
    )
    layout = parser.add_argument_group("another layout than the store's")
    layout.add_argument("--code", metavar="K+M", help=f"its code (default {DEFAULT_CODE})")
    layout.add_argument("--nodes", type=quantity("count"), metavar="N", help="how many nodes (default K+M)")
    layout.add_argument("--domains", type=quantity("count"), metavar="N", help="deal the nodes to N racks of one site")
    layout.add_argument(
        "--domain",
        action="append",
        default=[],
        metavar="ZONE/RACK/HOST",
        help="where a node is; give it once per node, instead of --domains",
    )
    figures = parser.add_argument_group("figures (default: measured on the store, else assumed; the answer says which)")
    for option, kind, unit, text in (
        ("--afr", "chance", "SHARE", "disks that die in a year, such as 1.5%%"),
        ("--host-afr", "chance", "SHARE", "hosts lost for good in a year, with their disks"),
        ("--rack-afr", "chance", "SHARE", "racks lost for good in a year"),
        ("--power-events", "amount", "PER_YEAR", "power events that strike a whole zone"),
        ("--power-loss", "chance", "SHARE", "disks that do not come back from a power event"),
        ("--ure", "chance", "PER_BIT", "bits that cannot be read when a rebuild needs them, such as 1e-15"),
        ("--node-bytes", "size", "SIZE", "stored on a node, such as 4T"),
        ("--repair-rate", "size", "SIZE", "bytes of lost fragments rebuilt per second, such as 100M"),
        ("--detection", "duration", "TIME", "until a loss is noticed, such as 1h"),
        ("--replacement", "duration", "TIME", "until a new disk is in, where no spare node takes the fragments"),
        ("--object-bytes", "size", "SIZE", "how large an object is"),
        ("--objects", "count", "N", "how many objects there are"),
        ("--years", "years", "N", "how long (default 1)"),
    ):
        figures.add_argument(option, type=quantity(kind), metavar=unit, help=text)
    trials = parser.add_argument_group("Monte Carlo and output")
    trials.add_argument(
        "--trials",
        type=quantity("trials"),
        default=40_000,
        metavar="N",
        help="episodes played out (default %(default)s)",
    )
    trials.add_argument(
        "--seed", type=quantity("seed"), default=1, metavar="N", help="of random numbers (default %(default)s)"
    )
    trials.add_argument("--plot", metavar="FILE", help="draw loss over repair time into FILE, a PNG")
    trials.add_argument("--chart", action="store_true", help="draw the same in the terminal")
    trials.add_argument("--json", action="store_true", help="print everything as one JSON object")


def add_collecting(commands: Commands) -> None:
    gc = command(
        commands,
        "gc",
        "collecting:gc",
        "free what nothing names any more",
        "Frees the bytes of what was deleted or overwritten, where whole segments and journal files hold nothing else; "
        "objfs compact frees the rest. Runs beside a server, or alone, and returns when the bytes are free. The exit "
        "code is 1 if something had to be left for the next run.",
    )
    compact = command(
        commands,
        "compact",
        "collecting:compact",
        "free what lies between what is in use",
        "As objfs gc, and copies what is in use out of segments that hold little of it, so that they can go too.",
    )
    compact.add_argument(
        "--threshold",
        type=share,
        default=0.8,
        metavar="SHARE",
        help="segments of which less is in use are rewritten (default %(default)s)",
    )
    for parser in (gc, compact):
        parser.add_argument("--dry-run", action="store_true", help="only say what would be freed, per bucket")
        parser.add_argument(
            "--abandoned-after",
            type=quantity("duration"),
            default="7d",
            metavar="TIME",
            help="abort multipart uploads nothing was added to for so long (default %(default)s)",
        )
        parser.add_argument(
            "--limit", type=quantity("size"), metavar="RATE", help="copy at most so much a second, such as 50MB"
        )
        parser.add_argument(
            "--wait",
            type=quantity("duration"),
            default="60s",
            metavar="TIME",
            help="wait so long for requests older than this run; then leave what they may use (default %(default)s)",
        )
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_indexing(commands: Commands) -> None:
    checkpoint = command(
        commands,
        "checkpoint",
        "indexing:checkpoint",
        "put the journal's content into segments and start it anew",
        "Writes a snapshot of the index to m+1 nodes, moves small content out of the journal into segments, archives "
        "the journal's records and deletes its files. A server does so by itself when the journal has grown. Runs "
        "beside a server, or alone.",
    )
    checkpoint.add_argument(
        "--journal-retention",
        type=quantity("duration"),
        default="30d",
        metavar="TIME",
        help="delete archived journal records older than this (default %(default)s)",
    )
    checkpoint.add_argument(
        "--journal-bytes",
        type=quantity("size"),
        default="1G",
        metavar="SIZE",
        help="and the oldest ones while archives hold more than this, per copy (default %(default)s)",
    )
    checkpoint.add_argument(
        "--limit", type=quantity("size"), metavar="RATE", help="copy at most so much a second, such as 50MB"
    )
    checkpoint.add_argument("--json", action="store_true", help="print the result as one JSON object")
    rebuild = command(
        commands,
        "rebuild-index",
        "indexing:rebuild_index",
        "make the index anew from the nodes",
        "Sets DATA/index aside and rebuilds it from the newest index snapshot and the journal on the nodes, of which m "
        "may be missing. Only while no server has the store open. An index that is missing or found damaged is rebuilt "
        "by itself when the store is opened.",
    )
    rebuild.add_argument("--json", action="store_true", help="print the result as one JSON object")


def add_protecting(commands: Commands) -> None:
    scrub = command(
        commands,
        "scrub",
        "protecting:scrub",
        "read and check every byte",
        "Reads every fragment, journal file and snapshot on every node and checks it, down to the SHA-256 of every "
        "chunk; what was not checked for longest comes first. Damage is told here and repaired by a running server. A "
        "scrub that was interrupted goes on where it stopped. The exit code is 1 if anything is damaged.",
    )
    scrub.add_argument("--all", action="store_true", help="begin anew, even if the last scrub was interrupted")
    repair = command(
        commands,
        "repair",
        "protecting:repair",
        "rebuild what is lost or damaged",
        "Rebuilds fragments that are damaged, or that lie on nodes that are lost, draining or came back without them; "
        "what survives the fewest losses comes first. A server does so by itself. The exit code is 1 if something "
        "stays below full protection.",
    )
    repair.add_argument(
        "--grace",
        type=quantity("duration"),
        default="10m",
        metavar="TIME",
        help="leave a node that is lost for less than this its fragments: it may come back (default %(default)s)",
    )
    repair.add_argument(
        "--narrow",
        action="store_true",
        help="where too few nodes are left for all fragments of a segment, write it anew over those there are",
    )
    for parser, limit in ((scrub, "50MB"), (repair, "100MB")):
        parser.add_argument(
            "--limit",
            type=quantity("size"),
            default=limit,
            metavar="RATE",
            help="read and write at most so much a second (default %(default)s)",
        )
        parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    quarantine = group(commands, "quarantine", "show what was set aside", "Damaged files are set aside and kept.")
    listed = command(
        quarantine,
        "list",
        "protecting:quarantine",
        "list what was set aside",
        "Lists damaged files that were set aside: what each was, on which node, since when and why.",
    )
    listed.add_argument("--json", action="store_true", help="print a JSON list")
