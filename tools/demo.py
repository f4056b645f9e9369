"""The demonstration: real input through three doors, crashes and lost nodes included.

Run it with tools/quickstart --demo. It works in a directory of its own, prints
`held: NAME` after each step, leaves nothing running or mounted, and exits 0 only if
every step held. Real input: two releases of Django as published, and the compiled
packages installed here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from running import Failed, RunningStore, can_mount, wait_until

PACKAGE, RELEASES = "Django", ("5.2.5", "5.2.6")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "objfs-demo"
AWS = Path(sys.executable).with_name("aws")
BUCKET = "demo"
LARGE_BYTES = 1024**3
PIECE_BYTES = 1024**2
LIBRARY_BYTES_MIN = 1024**2  # compiled libraries from this size on are synced too


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # clean up after either
    mounted = can_mount()
    if not mounted:
        say("no /dev/fuse to use here: serving the other doors; the steps through the mount cannot hold")
    directory = Path(tempfile.mkdtemp(prefix="objfs-demo-"))
    say(f"working in {directory}")
    demonstration = None
    try:
        demonstration = Demonstration(directory, mounted=mounted)
        for step in demonstration.steps():
            began = time.monotonic()
            step()
            say(f"took {time.monotonic() - began:.1f} s")
            print(f"held: {step.__name__.replace('_', '-')}", flush=True)
        demonstration.store.stop()
        say("drained: no process left, nothing mounted")
        return 0
    except (Failed, OSError, ClientError, BotoCoreError, subprocess.CalledProcessError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if demonstration is not None:
            demonstration.store.abandon()
        shutil.rmtree(directory)


class Demonstration:
    """The steps, in order; each raises Failed if what it claims does not hold."""

    def __init__(self, directory: Path, *, mounted: bool) -> None:
        self.directory = directory
        self.first, self.second = (release(directory, version) for version in RELEASES)
        self.libraries = copy_libraries(directory / "libraries")
        self.large = directory / "large.bin"
        self.large_sha256 = ""
        self.acknowledged: dict[str, str] = {}
        self.store = RunningStore(directory, mounted=mounted)
        self.store.start()
        say(self.store.ready_line)
        self.s3 = self.client()

    def steps(self) -> list[Callable[[], None]]:
        return [self.sync, self.diff, self.dedup, self.edit, self.multipart, self.kill, self.two_away, self.back]

    def client(self) -> Any:
        keys = self.store.environment
        return boto3.client(
            "s3",
            endpoint_url=keys["AWS_ENDPOINT_URL"],
            region_name=keys["AWS_DEFAULT_REGION"],
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=Config(retries={"total_max_attempts": 1}, max_pool_connections=16),
        )

    def aws(self, *arguments: str) -> None:
        run([str(AWS), "s3", *arguments], env=os.environ | self.store.environment)

    # -- the steps -------------------------------------------------------------

    def sync(self) -> None:
        """aws-cli brings in the first release and some hundreds of MB of libraries."""
        self.aws("mb", f"s3://{BUCKET}")
        self.aws("sync", str(self.first), f"s3://{BUCKET}/first/", "--only-show-errors")
        self.aws("sync", str(self.libraries), f"s3://{BUCKET}/libraries/", "--only-show-errors")
        stored = {key: size for key, size in self.listing()}
        for prefix, tree in (("first", self.first), ("libraries", self.libraries)):
            for path in files(tree):
                key = f"{prefix}/{path.relative_to(tree)}"
                require(stored.get(key) == path.stat().st_size, f"{key} is not listed with its size")
        say(f"{len(stored):,} objects, {sum(stored.values()):,} bytes by aws s3 sync")

    def diff(self) -> None:
        """diff -r through the mount finds no difference."""
        self.compare("first", self.first)
        self.compare("libraries", self.libraries)
        say(f"diff -r: {sum(1 for _ in files(self.first)):,} files, no difference through the mount")

    def dedup(self) -> None:
        """The second release goes to another prefix; SQL tells what it cost."""
        before = self.sizes()
        self.aws("sync", str(self.second), f"s3://{BUCKET}/second/", "--only-show-errors")
        self.compare("second", self.second)
        after = self.sizes()
        logical = sum(size for _, size in self.listing())
        require(after["logical_bytes"] == logical, f"SQL counts {after['logical_bytes']} bytes, S3 lists {logical}")
        added = after["logical_bytes"] - before["logical_bytes"]
        new = after["unique_bytes"] - before["unique_bytes"]
        require(new < added / 2, f"of {added:,} bytes of the second release {new:,} were stored again")
        say(f"logical {after['logical_bytes']:,}, unique {after['unique_bytes']:,}, stored {after['stored_bytes']:,}")
        ratio = after["logical_bytes"] / after["unique_bytes"]
        say(f"dedup ratio {ratio:.2f}; the second release has {added:,} bytes, of which {new:,} are new")

    def edit(self) -> None:
        """A file edited through the mount is read by boto3 at once."""
        key = "first/README.rst"
        path = self.path(key)
        for number in range(20):
            with open(path, "r+b") as file:
                file.seek(100)
                file.write(b"edited through the mount: %d" % number)
            body = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            require(body == path.read_bytes(), "boto3 and the mount read different bytes after an edit")
            require(b"mount: %d" % number in body, "boto3 read the bytes of before the edit")
        say("20 edits through the mount, each read by boto3 at once")

    def multipart(self) -> None:
        """1 GiB in parts comes back with its SHA-256 over S3 and through the mount."""
        self.large_sha256 = make_large_file(self.large, self.libraries)
        config = TransferConfig(multipart_threshold=8 * 1024**2, multipart_chunksize=16 * 1024**2, max_concurrency=4)
        self.s3.upload_file(str(self.large), BUCKET, "large.bin", Config=config)
        self.large.unlink()
        head = self.s3.head_object(Bucket=BUCKET, Key="large.bin")
        require(head["ContentLength"] == LARGE_BYTES and "-64" in head["ETag"], f"HEAD says {head['ETag']}")
        require(self.object_sha256("large.bin") == self.large_sha256, "S3 returns another SHA-256")
        require(file_sha256(self.path("large.bin")) == self.large_sha256, "the mount reads another SHA-256")
        say(f"1 GiB in 64 parts, SHA-256 {self.large_sha256[:16]}… over S3 and through the mount")

    def kill(self) -> None:
        """kill -9 everything in mid-upload; what was acknowledged is intact, the rest whole or absent."""
        uploads = Uploads(self.client)
        uploads.start()
        time.sleep(4)
        killed = self.store.kill()
        uploads.join()
        require(len(uploads.acknowledged) > 0, "nothing was acknowledged before the kill")
        self.store.start()
        self.s3 = self.client()
        present = {key: size for key, size in self.listing() if key.startswith("kill/")}
        for key, digest in uploads.acknowledged.items():
            require(self.object_sha256(key) == digest, f"{key} was acknowledged and is not intact")
        whole = 0
        for key, digest in uploads.unacknowledged.items():
            if key in present:
                require(self.object_sha256(key) == digest, f"{key} was not acknowledged and is there in part")
                whole += 1
        self.acknowledged = uploads.acknowledged
        self.compare("second", self.second)
        say(
            f"kill -9 of {killed} processes: {len(uploads.acknowledged)} acknowledged objects intact, of "
            f"{len(uploads.unacknowledged)} unacknowledged {whole} whole and the others absent"
        )

    def two_away(self) -> None:
        """Two of six nodes are moved away; everything reads, and writes go to 2+2."""
        self.away = self.directory / "away"
        self.away.mkdir()
        nodes = self.store.status()["nodes"]
        self.returning, self.emptied = nodes[1], nodes[4]
        for node in (self.returning, self.emptied):
            os.rename(node["path"], self.away / node["id"])
        wait_until(lambda: self.states().count("lost") == 2, "both nodes to be seen as lost")
        self.read_everything()
        self.write("away", 3)
        codes = self.store.sql(
            "SELECT DISTINCT k, m FROM chunk_references JOIN chunks USING (chunk_id) "
            "JOIN segments USING (segment_id) WHERE key LIKE 'away%'"
        )
        require(codes == [{"k": 2, "m": 2}], f"new writes went to {codes}")
        say("two nodes lost: everything reads, new writes at 2+2")

    def back(self) -> None:
        """They come back, one of them empty; full protection returns."""
        os.rename(self.away / self.returning["id"], self.returning["path"])
        empty = Path(self.emptied["path"])
        empty.mkdir()
        wait_until(lambda: self.states().count("lost") == 1, "the returned node to be seen")
        self.write("back", 1)
        self.read_everything()
        require(not any(empty.iterdir()), f"something was created in {empty} before objfs node replace")
        require(self.states().count("lost") == 1, "the empty directory was taken for the node")
        self.store.objfs("node replace", self.emptied["id"])
        wait_until(lambda: set(self.states()) == {"healthy"}, "every node to be healthy", seconds=180)
        wait_until(lambda: self.store.status()["under_redundancy"] == 0, "full protection", seconds=180)
        self.read_everything()
        say("the empty one stayed lost until objfs node replace; all six healthy, full protection, everything reads")

    # -- what they share -------------------------------------------------------

    def listing(self) -> Iterator[tuple[str, int]]:
        for page in self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for entry in page.get("Contents", []):
                yield entry["Key"], entry["Size"]

    def path(self, key: str) -> Path:
        if self.store.mount is None:
            raise Failed("this step needs the mount, and there is no /dev/fuse")
        return self.store.mount / BUCKET / key

    def compare(self, prefix: str, tree: Path) -> None:
        run(["diff", "-r", str(tree), str(self.path(prefix))])

    def sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = self.store.sql("SELECT logical_bytes, unique_bytes, stored_bytes FROM space")[0]
        return sizes

    def object_sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        for piece in self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].iter_chunks(PIECE_BYTES):
            digest.update(piece)
        return digest.hexdigest()

    def states(self) -> list[str]:
        return [node["state"] for node in self.store.status()["nodes"]]

    def read_everything(self) -> None:
        self.compare("second", self.second)
        self.compare("libraries", self.libraries)
        require(self.object_sha256("large.bin") == self.large_sha256, "the 1 GiB object reads differently")
        for key, digest in self.acknowledged.items():
            require(self.object_sha256(key) == digest, f"{key} reads differently")

    def write(self, name: str, count: int) -> None:
        for number in range(count):
            content = os.urandom(3 * 1024**2)
            key = f"{name}/{number}"
            self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)
            self.acknowledged[key] = hashlib.sha256(content).hexdigest()
            self.path(f"{name}-{number}").write_bytes(content)
            self.acknowledged[f"{name}-{number}"] = self.acknowledged[key]


class Uploads:
    """Clients that upload until the server is gone, and remember what was answered."""

    SIZES = (2_000, 40_000, 700_000, 9_000_000)

    def __init__(self, client: Callable[[], Any]) -> None:
        self.acknowledged: dict[str, str] = {}
        self.unacknowledged: dict[str, str] = {}
        self._threads = [
            threading.Thread(target=self._upload, args=(client(), number, size))
            for number, size in enumerate(self.SIZES)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _upload(self, s3: Any, uploader: int, size: int) -> None:
        number = 0
        while True:
            key = f"kill/{uploader}-{number}"
            content = os.urandom(size)
            digest = hashlib.sha256(content).hexdigest()
            self.unacknowledged[key] = digest
            try:
                s3.put_object(Bucket=BUCKET, Key=key, Body=content)
            except (ClientError, BotoCoreError):
                return
            self.acknowledged[key] = self.unacknowledged.pop(key)
            number += 1


def release(directory: Path, version: str) -> Path:
    """The unpacked source release; downloaded once by pip into the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)

    def downloaded() -> list[Path]:
        return sorted(CACHE.glob(f"*-{version}.tar.gz"))

    if not downloaded():
        say(f"downloading {PACKAGE} {version} into {CACHE}")
        wanted = ["--no-deps", "--no-binary", ":all:", "--dest", str(CACHE), f"{PACKAGE}=={version}"]
        run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted])
    target = directory / f"release-{version}"
    with tarfile.open(downloaded()[0]) as archive:
        archive.extractall(target, filter="data")
    return next(target.iterdir())


def copy_libraries(target: Path) -> Path:
    """The large compiled libraries of the packages installed here, as one tree."""
    source = Path(sysconfig.get_path("platlib"))
    for path in files(source):
        if ".so" in path.name and path.stat().st_size >= LIBRARY_BYTES_MIN:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return target


def make_large_file(path: Path, libraries: Path) -> str:
    """1 GiB of the libraries' bytes, as often as it takes; its SHA-256."""
    digest, left = hashlib.sha256(), LARGE_BYTES
    with open(path, "wb") as file:
        while left:
            for library in files(libraries):
                content = library.read_bytes()[:left]
                file.write(content)
                digest.update(content)
                left -= len(content)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(tree: Path) -> list[Path]:
    return sorted(path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())


def run(command: list[str], *, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise Failed(f"{' '.join(command)} ended with {done.returncode}: {said}")


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise Failed(otherwise)


def say(line: str) -> None:
    with suppress(BrokenPipeError):
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
