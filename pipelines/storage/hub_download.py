"""Download a snapshot from the Hub in a child process that its parent can stop.

    python -m pipelines.storage.hub_download '{"base": ..., "revision": ..., "patterns": [...]}'

Writes JSON lines to stdout: `{"download_bytes", "num_files", "cache"}` if something must be
downloaded, then `{"done_bytes"}` several times per second, and last `{"path"}` or `{"error"}` (one
line for the user). The end of stdin stops it: partial files are removed, finished ones stay.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pipelines.storage.hub_errors import describe_hub_error

_EVERY_S = 0.2
_CHUNK_BYTES = 1 << 20  # huggingface_hub's own 10 MiB make a bar on a slow line stand still


def main() -> None:
    """Run one download as the module's docstring says."""
    request = json.loads(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the watching process decides about Ctrl-C
    threading.Thread(target=_stop_with_stdin, daemon=True).start()
    try:
        path = download(request["base"], request["revision"], request["patterns"])
    except Exception as error:  # noqa: BLE001 - any failure must reach the watching process
        _emit(error=describe_hub_error(request["base"], request["revision"], error))
        sys.exit(1)
    _emit(path=str(path))


def download(base: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot's folder in the Hub's cache. Raises whatever huggingface_hub raises.

    If the Hub cannot be asked, a complete copy in the cache is used.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    constants.DOWNLOAD_CHUNK_SIZE = _CHUNK_BYTES
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(patterns)}
    try:
        files = snapshot_download(base, **wanted, dry_run=True)
    except DryRunError as error:  # its cause is the reason why the Hub cannot be asked
        try:
            return Path(snapshot_download(base, **wanted, local_files_only=True))
        except LocalEntryNotFoundError as missing:
            raise missing from error.__cause__
    missing = [file for file in files if file.will_download]
    if missing:
        size = sum(file.file_size or 0 for file in missing)
        _emit(download_bytes=size, num_files=len(missing), cache=constants.HF_HUB_CACHE)
    counter: Any = _ByteCounter
    return Path(snapshot_download(base, **wanted, tqdm_class=counter))


class _ByteCounter:
    """The part of tqdm's interface that snapshot_download uses; emits `done_bytes`, draws nothing.

    snapshot_download makes three bars: bytes received, bytes written, files. The bar of bytes that
    is ahead counts: a compressed transfer receives fewer bytes than it writes, but earlier.
    """

    _lock = threading.RLock()
    _done_bytes, _emitted_at = 0, 0.0

    def __init__(self, *_: Any, total: int | None = None, unit: str = "", **__: Any) -> None:
        self.total, self.n, self.unit = total, 0, unit
        self.format_dict: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: float | None = 1) -> None:
        counter = _ByteCounter
        with counter._lock:
            self.n += int(n or 0)
            if self.unit != "B" or self.n <= counter._done_bytes:
                return
            counter._done_bytes = self.n
            if time.monotonic() - counter._emitted_at >= _EVERY_S:
                counter._emitted_at = time.monotonic()
                _emit(done_bytes=self.n)

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None  # close, refresh, set_description, ...: nothing is drawn


def _stop_with_stdin() -> None:
    """Wait for the end of stdin, remove this process's partial downloads and end the process."""
    while os.read(0, 1):
        pass
    for link in Path("/proc/self/fd").glob("*"):
        try:
            target = Path(os.readlink(link))
            if target.suffix == ".incomplete":
                target.unlink()
        except OSError:
            continue  # closed or removed meanwhile
    os._exit(1)


def _emit(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
