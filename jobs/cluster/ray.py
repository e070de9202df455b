"""Connecting to Ray: the cluster that RAY_ADDRESS or a job names, else one on this machine, quiet unless asked."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from pipelines.config.recipe import Recipe
from pipelines.core.errors import UserError

_OBJECT_STORE_BYTES = 512 << 20
_CODE = Path(__file__).resolve().parents[2]
# Ray puts the driver's working directory in front of every worker's sys.path, where a user's own
# `jobs/` or `pipelines/` folder would hide ours. A worker that imported ours first keeps them.
_PRELOADED = ("RAY_preload_python_modules", "pipelines,jobs,serve_app")


@contextmanager
def ray_cluster(verbose: bool = False, num_cpus: int | None = None) -> Iterator[None]:
    """Ray while inside. A cluster started here ends with it; one that was there already only loses this driver.

    A local cluster offers at least 4 logical CPUs, so that two fractional trainers and the data tasks that feed them
    fit on two cores.
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
        with chdir(_CODE):
            ray.init(log_to_driver=True, logging_level=level)
    else:
        os.environ.setdefault(*_PRELOADED)
        ray.init(
            address="local",  # else a cluster started by hand on this machine would be joined, and these options refused
            num_cpus=num_cpus or max(4, os.cpu_count() or 1),
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=verbose,
            logging_level=level,
        )
    try:
        yield
    finally:
        ray.shutdown()


def quiet(verbose: bool) -> None:
    """Keep library chatter off the terminal unless `verbose`; it stays in Ray's own log files."""
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
    """Refuse a recipe whose training workers can never be placed; Ray would wait for them for ever.

    Raises UserError with what is asked and what the cluster has.
    """
    import ray

    have = ray.cluster_resources()
    want = recipe.resources
    for name, each in (("CPU", want.cpus_per_worker), ("GPU", want.gpus_per_worker)):
        total = each * want.min_workers
        if total > have.get(name, 0):
            raise UserError(
                f"resources: {want.min_workers} workers x {each:g} {name} = {total:g}, the cluster has {have.get(name, 0):g}; "
                f"set resources.workers or resources.{name.lower()}s_per_worker lower, or submit to a larger cluster"
            )
