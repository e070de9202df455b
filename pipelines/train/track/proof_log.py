"""The record of a run's proof of its base: base_proof.json in the run's folder.

Rank 0 writes it before the first step; the command that started the run shows it.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.train.base_proof import BaseProof

_FILE = "base_proof.json"


def write_proof(folder: Path, proof: BaseProof) -> None:
    """Replace the run's record."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_FILE}.tmp"
    temporary.write_text(json.dumps({"line": f"base proof: {proof}", **asdict(proof)}))
    os.replace(temporary, folder / _FILE)


def read_proof(folder: Path) -> dict[str, Any] | None:
    """The fields of the run's BaseProof, and "line", the same in words; None before the proof."""
    try:
        return json.loads((folder / _FILE).read_text())
    except FileNotFoundError:
        return None


def discard_proof(folder: Path) -> None:
    """Delete the record of an earlier start of the run."""
    (folder / _FILE).unlink(missing_ok=True)
