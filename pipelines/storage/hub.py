"""The folder with a base model's files: the user's own, or the Hub's snapshot of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT, Progress
from pipelines.storage.folders import nearest_path

_TEXT = ("*.json", "*.jinja", "tokenizer*")
_WEIGHTS = "*.safetensors"
_MB = 1_000_000
_STOP_S = 2.0  # the time a stopped download has to remove its partial files
_snapshots: dict[tuple[str, str | None, bool], Path] = {}


def local_base_dir(
    base: str, revision: str | None = None, weights: bool = True, progress: Progress | None = None
) -> Path:
    """The folder with a base's files: `base` itself, or the Hub's snapshot of it.

    A snapshot is downloaded once into the Hub's own cache, with a bar on `progress`. A process asks
    the Hub once, so all stages of one command see the same commit of a branch that moves. Without
    `weights` only configuration and tokenizer are downloaded.

    Raises UserError when `base` is neither a model's folder nor the id of a model that the Hub
    gives. Ctrl-C ends a download at once.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.base={base}: the folder has no config.json, so it is not a model; "
                "set the folder that holds config.json and the weights"
            )
        return folder
    if base.startswith(("/", ".", "~")) or base.count("/") > 1:
        near = nearest_path(folder)
        hint = (
            f"did you mean {near}?" if near else "set a model's folder or a Hub id such as org/name"
        )
        raise UserError(f"model.base={base}: no such folder; {hint}")
    for with_weights in {True, weights}:
        snapshot = _snapshots.get((base, revision, with_weights))
        if snapshot is not None and snapshot.is_dir():
            return snapshot
    patterns = (*_TEXT, _WEIGHTS) if weights else _TEXT
    snapshot = _download(base, revision, patterns, progress or SILENT)
    _snapshots[base, revision, weights] = snapshot
    return snapshot


def _download(base: str, revision: str | None, patterns: Sequence[str], progress: Progress) -> Path:
    """The snapshot's folder, downloaded by a `pipelines.storage.hub_download` process.

    A separate process, because huggingface_hub's threads cannot be interrupted: Ctrl-C would wait
    for the files that are on their way, which may take hours.
    """
    request = {"base": base, "revision": revision, "patterns": patterns}
    with tempfile.TemporaryFile("w+") as stderr, _child(request, stderr) as events:
        result = next(events, {})
        if "download_bytes" in result:
            progress.note(
                f"model.base={base}: downloading {result['num_files']:,} files, "
                f"{result['download_bytes'] / _MB:,.1f} MB, into {result['cache']}"
            )
            try:
                result = _draw(events, base, result["download_bytes"], progress)
            except KeyboardInterrupt:
                progress.note("download stopped; finished files stay in the cache")
                raise
        if "error" in result:
            raise UserError(result["error"])
        if "path" in result:
            return Path(result["path"])
        stderr.seek(0)
        last = (stderr.read().strip().splitlines() or ["it was killed"])[-1]
    raise UserError(
        f"model.base={base}: the download ended without a result ({last}); run the command again"
    )


def _draw(
    events: Iterator[dict[str, Any]], base: str, num_bytes: int, progress: Progress
) -> dict[str, Any]:
    """Draw a bar in MB until the download ends; returns its last event, {} if the process died."""
    total = -(-num_bytes // _MB)
    done = 0
    with progress.bar(f"download {base} (MB)", total=total) as advance:
        for event in events:
            if "done_bytes" not in event:
                if "path" in event:
                    advance(total - done)
                return event
            new = min(total, event["done_bytes"] // _MB) - done
            if new > 0:
                advance(new)
                done += new
    return {}


@contextmanager
def _child(request: Mapping[str, Any], stderr: IO[str]) -> Iterator[Iterator[dict[str, Any]]]:
    """The events that a download process writes. It is stopped when the block is left."""
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: a folder named `pipelines` in the user's working directory must not be imported instead.
    command = [sys.executable, "-P", "-m", "pipelines.storage.hub_download", json.dumps(request)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            yield (json.loads(line) for line in process.stdout)
        finally:
            process.stdin.close()  # the signal to stop; the end of this process sends it too
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
