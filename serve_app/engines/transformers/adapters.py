"""The adapters in memory: loaded on first use, the least recently used dropped over the capacity.

An adapter in use is never dropped, and a new one is loaded before an old one is dropped, so that a
failed load changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from serve_app.engines.protocol import AdapterRef


class AdapterCache:
    """Counts the uses of each adapter by its key. Not thread-safe: the engine's thread owns it."""

    def __init__(
        self, capacity: int, load: Callable[[AdapterRef], None], unload: Callable[[str], None]
    ) -> None:
        self._capacity, self._load, self._unload = capacity, load, unload
        self._pins: OrderedDict[str, int] = OrderedDict()  # least recently used first

    def __len__(self) -> int:
        return len(self._pins)

    def acquire(self, adapter: AdapterRef) -> None:
        """Pin an adapter and load it if it is not in memory; an error of `load` changes nothing."""
        if adapter.key not in self._pins:
            self._load(adapter)
            self._pins[adapter.key] = 0
        self._pins[adapter.key] += 1
        self._pins.move_to_end(adapter.key)
        self._shrink()

    def release(self, key: str) -> None:
        """Undo one `acquire`."""
        self._pins[key] -= 1
        self._shrink()

    def _shrink(self) -> None:
        """Drop unused adapters over the capacity, which adapters in use may exceed for a while."""
        idle = [key for key, pins in self._pins.items() if pins == 0]
        for key in idle[: max(0, len(self._pins) - self._capacity)]:
            self._unload(key)
            del self._pins[key]
