"""Ends a worker that hangs."""

from __future__ import annotations

import faulthandler


class Watchdog:
    """Exits the process, with every thread's stack on stderr, `timeout_s` after the last `restart`.

    Restart it before each step, held-out scoring and save. A hung collective thereby becomes a dead
    worker, which Ray Train replaces. `faulthandler` runs in its own C thread, so it also fires
    while the main thread is blocked inside NCCL or gloo.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.restart()

    def restart(self) -> None:
        """Start counting again."""
        faulthandler.dump_traceback_later(self._timeout_s, exit=True)

    def stop(self) -> None:
        """Never exit."""
        faulthandler.cancel_dump_traceback_later()
