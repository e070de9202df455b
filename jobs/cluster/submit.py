"""`loraforge submit`: the run of a recipe as a Ray job. The same submission twice is one job."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import CODE
from jobs.cluster.staging import RECIPE_FILE, stage_files
from pipelines.config.recipe import Recipe
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.core.progress import Progress
from pipelines.registry.provenance import (
    ACTOR_VARIABLE,
    COMMIT_VARIABLE,
    current_actor,
    git_commit,
)

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_DEFAULT_TOKEN = Path("~/.ray/auth_token")
_POLL_S = 1.0
_YOUNG_CLUSTER_S = 120  # a head answers for a while before its agent can take a job


@dataclass(frozen=True)
class SubmittedJob:
    """A cluster job: whether this call started it, its status, and its exit code if it ended."""

    submission_id: str
    started: bool
    status: str
    exit_code: int | None


def submit_job(
    recipe: Recipe,
    store_uri: str,
    address: str,
    progress: Progress,
    follow: bool = True,
    shared: Sequence[Path] = (),
    command: str = "sh jobs/cluster/on_cluster.sh $PPID python -m jobs.cli run",
) -> SubmittedJob:
    """Run `loraforge run` as a job of the cluster at `address`, or find the job that already does.

    The job's id is the digest of code, recipe, data, base and store. A job of that id that waits,
    runs or succeeded is not started again; after one that failed or was stopped, the next attempt
    (`ID-2`, ...) resumes from what it left in the store. With `follow` its log is shown until it
    ends. Raises UserError for an address where no cluster answers, a refused token, a missing
    file, or an upload above the limit.
    """
    recipe.check_registers()
    staged = stage_files(recipe, shared)
    entrypoint = f"{command} {RECIPE_FILE} --store {shlex.quote(store_uri)}"
    name = f"loraforge-{recipe.name}-{short(digest_of([staged.digest, entrypoint]))}"
    with _as_user_error(address):
        client = _connect(address)
        job_id, exists = _attempt(client, name)
        if not exists:
            with tempfile.TemporaryDirectory(prefix="loraforge-submit-") as folder:
                staged.write(Path(folder))
                exists = not _start(client, job_id, entrypoint, folder)
        progress.note(
            f"job {job_id}: {'found, nothing started' if exists else 'submitted'}, "
            f"{staged.num_bytes / 1e6:.1f} MB"
        )
        if follow:
            _follow(client, job_id, progress)
        details = client.get_job_info(job_id)
    progress.note(f"job {job_id}: {details.status}")
    return SubmittedJob(job_id, not exists, str(details.status.value), details.driver_exit_code)


def auth_headers() -> dict[str, str]:
    """The header with the token of RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Empty with RAY_AUTH_MODE=disabled or without a token. Raises UserError when the file of
    RAY_AUTH_TOKEN_PATH cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return {}
    token, path = os.environ.get("RAY_AUTH_TOKEN", ""), os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    if not token and (path or _DEFAULT_TOKEN.expanduser().is_file()):
        try:
            token = Path(path or _DEFAULT_TOKEN).expanduser().read_text().strip()
        except OSError as error:
            raise UserError(
                f"RAY_AUTH_TOKEN_PATH={path}: cannot read the token ({error.strerror})"
            ) from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def _connect(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address}: expected the dashboard's URL, such as http://127.0.0.1:8265"
        )
    return JobSubmissionClient(address, headers=auth_headers())


def _attempt(client: JobSubmissionClient, name: str) -> tuple[str, bool]:
    """The id to use, and whether a job of that id exists, so that none must be started."""
    from ray.job_submission import JobStatus

    statuses = {job.submission_id: job.status for job in client.list_jobs()}
    job_id, attempt = name, 1
    while statuses.get(job_id) in (JobStatus.FAILED, JobStatus.STOPPED):
        attempt += 1
        job_id = f"{name}-{attempt}"
    return job_id, job_id in statuses


def _start(client: JobSubmissionClient, job_id: str, entrypoint: str, folder: str) -> bool:
    """Start the job; False when another submission of the same id came first."""
    deadline = time.monotonic() + _YOUNG_CLUSTER_S
    commit = git_commit(CODE)
    env_vars = {ACTOR_VARIABLE: current_actor()} | ({COMMIT_VARIABLE: commit} if commit else {})
    runtime_env = {"working_dir": folder, "env_vars": env_vars}
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env)
            return True
        except RuntimeError as error:
            if "already exists" in str(error):
                return False
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


def _follow(client: JobSubmissionClient, job_id: str, progress: Progress) -> None:
    async def show() -> None:
        async for text in client.tail_job_logs(job_id):
            for line in text.splitlines():
                progress.note(line)

    try:
        asyncio.run(show())
        while not client.get_job_status(job_id).is_terminal():
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        progress.note(
            f"job {job_id} continues; the same command follows it again, "
            f"`ray job stop {job_id}` ends it"
        )


@contextmanager
def _as_user_error(address: str) -> Iterator[None]:
    """Turn errors of the Jobs client into a UserError that names what to set."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        why = (
            "wants a token"
            if str(error).startswith("Authentication required")
            else "refuses this token"
        )
        raise UserError(
            f"--address {address}: the cluster {why}; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to "
            "the cluster's token"
        ) from error
    except (ConnectionError, requests.RequestException, aiohttp.ClientError) as error:
        raise UserError(
            f"--address {address}: no Ray dashboard answers there; check that the cluster runs and "
            "that its port 8265 is forwarded to this machine"
        ) from error
