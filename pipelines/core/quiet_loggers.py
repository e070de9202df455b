"""Log levels of libraries that set their own when they are imported."""

from __future__ import annotations

import logging


def follow_ray_logger(name: str) -> None:
    """Give a logger the level of the logger "ray", on which `-v` decides.

    Importing ray.data or ray.serve sets the level of their own loggers to DEBUG or INFO; call this
    after the import.
    """
    logging.getLogger(name).setLevel(logging.getLogger("ray").getEffectiveLevel())
