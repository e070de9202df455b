"""The origin of a model version: its ancestors, the code's commit, and who moved an alias."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import Checkpoint, EvalReport, PreparedDataset

# A submitted job sets both, since its code travels without `.git` and runs as another user.
COMMIT_VARIABLE = "LORAFORGE_COMMIT"
ACTOR_VARIABLE = "LORAFORGE_ACTOR"


def lineage(
    recipe: Recipe,
    prepared: PreparedDataset,
    checkpoint: Checkpoint,
    report: EvalReport,
    commit: str | None,
) -> dict[str, str]:
    """A version's ancestors as role -> digest.

    Roles are the checkpoint, the evaluation report, the dataset with its own parents, the recipe,
    the held-out set and, when known, the git commit.
    """
    roles = {
        "checkpoint": checkpoint.ref.digest,
        "evals": report.ref.digest,
        "prepared": prepared.ref.digest,
    }
    roles |= {f"prepared.{role}": digest for role, digest in prepared.ref.parents.items()}
    roles |= {"recipe": recipe.digest, "heldout": report.heldout_digest}
    return roles | ({"git_commit": commit} if commit else {})


def git_commit(folder: Path | None) -> str | None:
    """LORAFORGE_COMMIT, else the HEAD commit of the repository in `folder`, else None.

    Reads `.git` itself, so that no git program is needed.
    """
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    git = folder / ".git" if folder else None
    if git is None or not (git / "HEAD").is_file():
        return None
    head = (git / "HEAD").read_text().strip()
    if not head.startswith("ref: "):  # a detached HEAD is the commit itself
        return head or None
    branch = head.removeprefix("ref: ")
    if (git / branch).is_file():
        return (git / branch).read_text().strip()
    packed = git / "packed-refs"
    lines = packed.read_text().splitlines() if packed.is_file() else []
    return next((line.split()[0] for line in lines if line.endswith(f" {branch}")), None)


def current_actor() -> str:
    """Who acts, for the history of aliases: LORAFORGE_ACTOR, else `user@host`."""
    actor = os.environ.get(ACTOR_VARIABLE)
    if actor:
        return actor
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        user = f"uid{os.getuid()}"
    return f"{user}@{socket.gethostname()}"
