"""The cost of a rerun: bytes hashed in a pocket run and in its rerun, and the rerun's seconds.

    python -m bench.steps [--json]

The peer of the rerun is `python -c "import typer, pydantic"` on the same machine: what any command
line of this kind takes to start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench._measure import Measure, show

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "pocket_lora_person_cpu.yaml"
MAX_RERUN_OVER_IMPORT = 8.0
_REPEATS = 5
# Runs the command line and reports on stderr what FileHashes read.
_COUNTED = """
import json, sys
from pipelines.sources import hashes
read, paths = hashes.FileHashes._read, []
def counting(self, path):
    paths.append([path, 0])
    before = self.num_bytes
    digest = read(self, path)
    paths[-1][1] = self.num_bytes - before
    return digest
hashes.FileHashes._read = counting
from jobs.cli import main
try:
    main()
finally:
    heavy = sorted({"torch", "ray", "transformers"} & set(sys.modules))
    print("COUNTED", json.dumps({"paths": paths, "heavy": heavy}), file=sys.stderr)
"""


def main() -> int:
    """Exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    return 0 if show(measures(), parser.parse_args().json) else 1


def measures() -> Iterator[Measure]:
    """Run the pocket recipe twice in one store with an empty memory of hashes."""
    with tempfile.TemporaryDirectory(prefix="loraforge-bench-") as folder:
        fresh, fresh_s = _run(Path(folder))
        sizes = {path: size for path, size in fresh["paths"]}
        most = max(Counter(path for path, _ in fresh["paths"]).values())
        yield Measure("fresh run: files hashed", len(sizes), "files")
        yield Measure("fresh run: bytes hashed", sum(sizes.values()), "bytes")
        yield Measure("fresh run: times the same file was hashed", most, "", ("at_most", 1))
        yield Measure("fresh run, process start to end", fresh_s, "s")
        again, _ = _run(Path(folder))
        num_bytes = sum(size for _, size in again["paths"])
        yield Measure("rerun: bytes hashed", num_bytes, "bytes", ("at_most", 0))
        heavy = ", ".join(again["heavy"]) or "none"
        yield Measure(
            "rerun: of torch, ray and transformers imported",
            len(again["heavy"]),
            "",
            ("at_most", 0),
            heavy,
        )
        rerun_s = min(_run(Path(folder))[1] for _ in range(_REPEATS))
        import_s = min(_import_seconds() for _ in range(_REPEATS))
        yield Measure("rerun, process start to end", rerun_s, "s")
        yield Measure(
            "rerun over `import typer, pydantic`",
            rerun_s / import_s,
            "x",
            ("at_most", MAX_RERUN_OVER_IMPORT),
            f"imports {import_s:.2f} s",
        )


def _run(folder: Path) -> tuple[dict, float]:
    """One `loraforge run`: what it hashed and imported, and its seconds from start to end."""
    command = [sys.executable, "-c", _COUNTED, "run", str(RECIPE), "--store", str(folder / "store")]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise RuntimeError(f"loraforge run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    line = next(line for line in done.stderr.splitlines() if line.startswith("COUNTED "))
    return json.loads(line.removeprefix("COUNTED ")), seconds


def _import_seconds() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import typer, pydantic"], check=True)
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main())
