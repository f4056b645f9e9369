"""What tools/quickstart runs: a store in ./objfs-data, served and mounted until Ctrl-C.

Started in the newcomer's directory with the path of the objfs command. It makes the store
if there is none, runs `objfs serve`, and once that is ready says what to type next.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

DATA = Path("objfs-data")
MOUNT = Path("mnt")
LISTEN = "127.0.0.1:9000"


def main(objfs: str) -> int:
    if not (DATA / "store.json").exists():
        subprocess.run([objfs, "init", "--data", DATA], check=True)
    command = [objfs, "serve", "--data", DATA, "--listen", LISTEN]
    mounted = os.access("/dev/fuse", os.R_OK | os.W_OK) and shutil.which("fusermount3") is not None
    if mounted:
        command += ["--mount", MOUNT]
    else:
        print("no /dev/fuse to use here: serving S3 and SQL, without the mount", file=sys.stderr)

    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:

        def pass_on(number: int, _frame: object) -> None:
            # A terminal's Ctrl-C reaches the server by itself; both signals drain it.
            if number == signal.SIGTERM:
                server.send_signal(number)

        signal.signal(signal.SIGTERM, pass_on)
        signal.signal(signal.SIGINT, pass_on)
        assert server.stdout is not None
        for line in server.stdout:
            print(line, end="", flush=True)
            if line.startswith("ready"):
                print(what_next(objfs, mounted=mounted), flush=True)
        return server.wait()


def what_next(objfs: str, *, mounted: bool) -> str:
    """The credentials, and the lines to type in another terminal."""
    credentials = subprocess.run(
        [objfs, "credentials", "--data", DATA], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    command = os.path.relpath(objfs)
    aws = "aws" if shutil.which("aws") else os.path.relpath(Path(objfs).with_name("aws"))
    lines = [
        "",
        "Your keys (paste these into another terminal):",
        *("  " + line for line in credentials.splitlines()),
        "",
        "Then try:",
        f"  {aws} s3 mb s3://first && {aws} s3 cp {command} s3://first/",
        *([f"  ls -l {MOUNT}/first"] if mounted else []),
        f'  {command} sql "SELECT bucket, key, size FROM inventory"',
        "",
        "Ctrl-C ends it; the store stays in ./objfs-data.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
