"""Provenance."""

from __future__ import annotations

import os
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import (
    Checkpoint,
    EvalReport,
    PreparedDataset,
)

COMMIT_VARIABLE = "LORAFORGE_COMMIT"


def lineage(
    recipe: Recipe,
    prepared: PreparedDataset,
    checkpoint: Checkpoint,
    report: EvalReport,
    commit: str | None,
) -> dict[str, str]:
    """What a version descends from, role -> digest: checkpoint, report, dataset, its source files, recipe, commit."""
    roles = {
        "checkpoint": checkpoint.ref.digest,
        "evals": report.ref.digest,
        "prepared": prepared.ref.digest,
    }
    roles |= {f"prepared.{role}": digest for role, digest in prepared.ref.parents.items()}
    roles |= {"recipe": recipe.digest, "heldout": report.heldout_digest}
    return roles | ({"git_commit": commit} if commit else {})


def git_commit(folder: Path | None) -> str | None:
    """The commit that a folder's HEAD stands at, read from `.git`; None where there is no repository.

    A submitted job, whose code travels without `.git`, is told in LORAFORGE_COMMIT.
    """
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    git = folder / ".git" if folder else None
    if git is None or not (git / "HEAD").is_file():
        return None
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):
        return head or None
    name = head.removeprefix("ref: ")
    if (git / name).is_file():
        return (git / name).read_text().strip()
    packed = (
        (git / "packed-refs").read_text().splitlines() if (git / "packed-refs").is_file() else []
    )
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
