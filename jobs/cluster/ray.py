"""Connecting to Ray: the cluster of RAY_ADDRESS or of a job, else one started on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager

from jobs import CODE
from pipelines.config.recipe import Recipe
from pipelines.core.errors import UserError

OBJECT_STORE_BYTES = 512 << 20
# Ray puts the driver's working directory in front of every worker's sys.path, where a user's own
# `jobs/` or `pipelines/` folder would hide ours. A worker that imported ours first keeps them.
_PRELOADED = ("RAY_preload_python_modules", "pipelines,jobs,serve_app")


@contextmanager
def ray_cluster(verbose: bool = False, num_cpus: int | None = None) -> Iterator[None]:
    """Ray is initialised inside. A cluster that was started here ends on exit; others keep running.

    A local cluster offers at least 4 logical CPUs, so that two trainers with fractional CPUs and
    the data tasks that feed them fit on two cores.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    quiet(verbose)
    level = logging.INFO if verbose else logging.ERROR
    if os.environ.get("RAY_ADDRESS"):
        # That cluster's workers are not started here, so they preload nothing; this directory is
        # the one that Ray puts in front of their sys.path.
        with chdir(CODE):
            ray.init(log_to_driver=True, logging_level=level)
    else:
        os.environ.setdefault(*_PRELOADED)
        ray.init(
            # Without it Ray would join a cluster started by hand on this machine and refuse the
            # options below.
            address="local",
            num_cpus=num_cpus or max(4, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=verbose,
            logging_level=level,
        )
    try:
        yield
    finally:
        ray.shutdown()


def quiet(verbose: bool) -> None:
    """Keep the logs of libraries off the terminal unless `verbose`; Ray's own files keep them."""
    if verbose:
        return
    warnings.filterwarnings("ignore")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    for name in (
        "ray",
        "ray.data",
        "ray.train",
        "ray.serve",
        "ray.tune",
        "deepspeed",
        "bitsandbytes",
    ):
        logging.getLogger(name).setLevel(logging.ERROR)


def check_fits(recipe: Recipe) -> None:
    """Raise UserError when the cluster can never place the training workers.

    Ray itself would wait for them for ever.
    """
    import ray

    have = ray.cluster_resources()
    want = recipe.resources
    for name, each in (("CPU", want.cpus_per_worker), ("GPU", want.gpus_per_worker)):
        total = each * want.min_workers
        if total > have.get(name, 0):
            raise UserError(
                f"resources: {want.min_workers} workers x {each:g} {name} = {total:g}, the cluster "
                f"has {have.get(name, 0):g}; set resources.workers or "
                f"resources.{name.lower()}s_per_worker lower, or submit to a larger cluster"
            )
