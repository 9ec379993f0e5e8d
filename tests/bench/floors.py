"""The floor of each row: the least that the same work takes on this machine with the best tools there are."""

import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from isal import isal_zlib

from tests.bench import wire
from tests.bench.inputs import Published
from tests.bench.workload import PIECE
from tests.support import sample


def _untar(folder: Path, source: IO[bytes] | int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True)
    return subprocess.Popen(["tar", "-xp", "--numeric-owner", "-C", folder, "-f", "-"], stdin=source)


def _end(tar: subprocess.Popen[bytes]) -> None:
    if code := tar.wait(300):
        raise subprocess.CalledProcessError(code, tar.args)


def create(archive: Path, scratch: Path) -> int:
    """Unpack a tar with GNU tar while it is compressed (isal, level 1) and hashed on both sides of that.

    The blob is synced to disk, as a blob that is committed must be; the tree is not. Return the blob's size.
    """
    blob = scratch / "blob"
    plain, packed = hashlib.sha256(), hashlib.sha256()
    gzip = isal_zlib.compressobj(1, isal_zlib.DEFLATED, 31)
    with archive.open("rb") as tar_source, archive.open("rb") as source, blob.open("wb") as out:
        tar = _untar(scratch / "tree", tar_source)
        while data := source.read(PIECE):
            plain.update(data)
            piece = gzip.compress(data)
            packed.update(piece)
            out.write(piece)
        piece = gzip.flush()
        packed.update(piece)
        out.write(piece)
        out.flush()
        os.fsync(out.fileno())
        _end(tar)
    return blob.stat().st_size


def install(registry: str, published: Published, scratch: Path) -> None:
    """Fetch each layer, hash it, gunzip it (isal) and give it to GNU tar, all at the same time, and keep the blobs."""
    for number, layer in enumerate(published.layers):
        folder, blob = scratch / f"tree-{number}", scratch / f"blob-{number}"
        tar = _untar(folder, subprocess.PIPE)
        assert tar.stdin
        found = hashlib.sha256()
        gunzip = isal_zlib.decompressobj(31)
        pieces: Iterable[bytes] = wire.get_blob(registry, published.repository, layer.digest, piece=PIECE // 4)
        with blob.open("wb") as out, tar.stdin:
            for data in pieces:
                found.update(data)
                out.write(data)
                tar.stdin.write(gunzip.decompress(data))
            out.flush()
            os.fsync(out.fileno())
        _end(tar)
        assert f"sha256:{found.hexdigest()}" == layer.digest


class Container:
    """conmon, runc and the sample plugin with nothing above them; one start and its end at a time.

    Args:
        top: a folder of its own.

    """

    def __init__(self, top: Path) -> None:
        self._top = top
        self._bundle, self._sockets, self._runc = top / "bundle", top / "s", top / "runc"
        for folder in (self._bundle / "rootfs", self._sockets, self._runc):
            folder.mkdir(parents=True)
        shutil.copy2(sample.sample_plugin_binary(), self._bundle / "rootfs")
        subprocess.run(["runc", "spec", "--bundle", self._bundle], check=True, timeout=30)
        file = self._bundle / "config.json"
        spec = json.loads(file.read_text())
        spec["process"] |= {"terminal": False, "args": ["/sample-volume-plugin", "/run/docker/plugins/p.sock"]}
        spec["root"] = {"path": "rootfs", "readonly": False}
        bind = {"type": "bind", "source": str(self._sockets), "options": ["rbind", "rw"]}
        spec["mounts"].append({"destination": "/run/docker/plugins", **bind})
        file.write_text(json.dumps(spec))
        self._id = ""

    def start(self) -> None:
        """Create, start, and wait until the plugin has answered."""
        self._id = uuid.uuid4().hex
        words: list[str | Path] = ["conmon", "--api-version", "1", "--cid", self._id, "--cuuid", self._id]
        words += ["--runtime", shutil.which("runc") or "runc", "--runtime-arg", f"--root={self._runc}"]
        words += ["--bundle", self._bundle, "--exit-dir", self._top, "--full-attach", "--no-sync-log"]
        words += ["--container-pidfile", self._top / "pid", "--conmon-pidfile", self._top / "conmon-pid"]
        words += ["--log-path", f"k8s-file:{self._top / 'log'}"]
        reading, writing = os.pipe()
        try:
            environment = {"PATH": os.environ["PATH"], "_OCI_SYNCPIPE": str(writing)}
            subprocess.run(words, check=True, env=environment, pass_fds=[writing], cwd=self._top, timeout=30)
            os.close(writing)
            writing = -1
            report = os.read(reading, 65536)  # conmon's one line, or the end when it died
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)
        if json.loads(report or b"{}").get("data", -1) <= 0:
            raise RuntimeError(f"conmon: {report!r}")
        subprocess.run(["runc", f"--root={self._runc}", "start", self._id], check=True, timeout=30)
        wire.activate(self._sockets / "p.sock")

    def end(self) -> None:
        """Delete the container, wait for its monitor to go, and remove the socket."""
        subprocess.run(["runc", f"--root={self._runc}", "delete", "--force", self._id], check=True, timeout=30)
        deadline = time.monotonic() + 10
        while not (self._top / self._id).exists() and time.monotonic() < deadline:  # the exit file: conmon's last work
            time.sleep(0.001)
        (self._sockets / "p.sock").unlink(missing_ok=True)
