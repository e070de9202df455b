"""Which adapters are in memory: loaded when first asked for, the least recently used one dropped when there are too many.

An adapter in use is never dropped, and a new one is loaded before an old one goes, so a load that fails costs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from serve_app.engines.protocol import AdapterRef


class AdapterCache:
    """Names adapters by their digest. Not thread-safe: the engine's one thread owns it."""

    def __init__(
        self, capacity: int, load: Callable[[AdapterRef], None], unload: Callable[[str], None]
    ) -> None:
        self._capacity, self._load, self._unload = capacity, load, unload
        self._pins: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._pins)

    def acquire(self, adapter: AdapterRef) -> None:
        """Pin an adapter, loading it if need be. What loading raises passes through and changes nothing."""
        if adapter.key not in self._pins:
            self._load(adapter)
            self._pins[adapter.key] = 0
        self._pins[adapter.key] += 1
        self._pins.move_to_end(adapter.key)
        self._shrink()

    def release(self, key: str) -> None:
        """Take back one `acquire`."""
        self._pins[key] -= 1
        self._shrink()

    def _shrink(self) -> None:
        """Drop unused adapters over the capacity; those in use may exceed it for a while."""
        idle = [key for key, pins in self._pins.items() if pins == 0]
        for key in idle[: max(0, len(self._pins) - self._capacity)]:
            self._unload(key)
            del self._pins[key]
