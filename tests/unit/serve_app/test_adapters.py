"""The adapter cache: drops the least recently used, and none in use; a failed load drops none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engines.protocol import AdapterRef
from serve_app.engines.transformers.adapters import AdapterCache


def ref(key: str) -> AdapterRef:
    return AdapterRef(key, f"{key}@0")


class Loads:
    """Records the adapters in memory and fails to load `bad`."""

    def __init__(self) -> None:
        self.in_memory: list[str] = []
        self.log: list[str] = []

    def load(self, adapter: AdapterRef) -> None:
        if adapter.key == "bad":
            raise ValueError("bad")
        self.in_memory.append(adapter.key)
        self.log.append(f"+{adapter.key}")

    def unload(self, key: str) -> None:
        self.in_memory.remove(key)
        self.log.append(f"-{key}")


def test_the_least_recently_used_adapter_is_dropped_first() -> None:
    loads = Loads()
    cache = AdapterCache(2, loads.load, loads.unload)
    for key in ("a", "b", "a", "c"):
        cache.acquire(ref(key))
        cache.release(key)
    assert loads.log == ["+a", "+b", "+c", "-b"] and len(cache) == 2


def test_an_adapter_in_use_stays_when_the_cache_is_over_capacity() -> None:
    loads = Loads()
    cache = AdapterCache(1, loads.load, loads.unload)
    for key in ("a", "b", "c"):
        cache.acquire(ref(key))
    assert loads.in_memory == ["a", "b", "c"]
    cache.release("b")
    cache.release("a")
    assert loads.in_memory == ["c"]


def test_a_failed_load_drops_no_adapter() -> None:
    loads = Loads()
    cache = AdapterCache(1, loads.load, loads.unload)
    cache.acquire(ref("a"))
    cache.release("a")
    with pytest.raises(ValueError, match="bad"):
        cache.acquire(ref("bad"))
    assert loads.log == ["+a"] and len(cache) == 1


@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("abcde"), st.booleans()), max_size=60))
def test_pinned_adapters_stay_and_the_others_fit_the_capacity(
    capacity: int, steps: list[tuple[str, bool]]
) -> None:
    loads = Loads()
    cache = AdapterCache(capacity, loads.load, loads.unload)
    pins: dict[str, int] = {}
    for key, acquire in steps:
        if acquire:
            cache.acquire(ref(key))
            pins[key] = pins.get(key, 0) + 1
        elif pins.get(key):
            cache.release(key)
            pins[key] -= 1
        pinned = {k for k, count in pins.items() if count}
        assert pinned <= set(loads.in_memory)
        assert len(loads.in_memory) <= max(capacity, len(pinned))
