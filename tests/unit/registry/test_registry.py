"""The registry: what it refuses, what it remembers, and that a race has exactly one winner."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.core.artifacts import from_json, to_json
from pipelines.core.errors import UserError
from pipelines.registry.aliases import AliasMovedError
from pipelines.registry.registry import Registry
from pipelines.storage import Store

LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


def write_adapter(
    folder: Path, seed: int = 0, tensors: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A LoRA adapter of r=2 on one 4x6 linear in PEFT's two files."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    sound = {
        f"{LAYER}.lora_A.weight": rng.normal(size=(2, 6)).astype(np.float32),
        f"{LAYER}.lora_B.weight": rng.normal(size=(4, 2)).astype(np.float32),
    }
    save_file(sound | (tensors or {}), str(folder / "adapter_model.safetensors"))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | config

    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def register(registry: Registry, adapter: Path, model: str = "bot", **given: Any) -> Any:
    facts: dict[str, Any] = {
        "base": "pocket",
        "base_fingerprint": "f" * 64,
        "lineage": {"prepared": "a" * 64},
    }
    facts |= {"metrics": {"heldout_loss": 0.5}, **given}
    return registry.register(model, adapter, **facts)


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store)


# -- versions ----------------------------------------------------------------------------------------------------


def test_a_version_outlives_its_checkpoint_and_keeps_its_lineage(
    registry: Registry, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    version = register(registry, adapter, lineage={"prepared": "a" * 64, "source": "b" * 64})
    (adapter / "adapter_model.safetensors").unlink()
    again = registry.get(version.id)
    assert again == version == from_json(type(version), to_json(version))
    assert again.lineage == {"prepared": "a" * 64, "source": "b" * 64}
    assert sorted(p.name for p in registry.adapter_dir(again).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (registry.adapter_dir(again) / "adapter_model.safetensors").read_bytes() == weights


def test_the_same_adapter_is_one_version_and_other_weights_names_or_bases_are_others(
    registry: Registry, tmp_path: Path
) -> None:
    adapter, other = write_adapter(tmp_path / "a"), write_adapter(tmp_path / "b", seed=1)
    first = register(registry, adapter)
    assert register(registry, adapter, metrics={"heldout_loss": 0.4}) == first
    ids = {
        first.id,
        register(registry, other).id,
        register(registry, adapter, base_fingerprint="e" * 64).id,
        register(registry, adapter, model="cat").id,
    }
    assert len(ids) == 4
    assert registry.models() == ["bot", "cat"]
    assert len(registry.versions("bot")) == 3 and registry.versions("bot")[0] == first


def test_a_bit_flipped_after_registration_is_noticed(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    path = registry.adapter_dir(version) / "adapter_model.safetensors"
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="adapter_model.safetensors.*damaged"):
        registry.adapter_dir(version)


def test_get_understands_versions_aliases_and_bare_names(
    registry: Registry, tmp_path: Path
) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    for unknown in (
        "bot",
        "bot:production",
        "bot@000000000000",
        "cat",
        "bot@../../etc",
        f"cat@{version.id[4:]}",
    ):
        with pytest.raises(UserError, match=r"no (such version|alias)"):
            registry.get(unknown)
    registry.promote("bot", "production", version.id, 0)
    assert (
        registry.get("bot") == registry.get("bot:production") == registry.get(version.id) == version
    )


@pytest.mark.parametrize("name", ["../bot", "", "a/b", ".hidden", "x" * 64, "bot\n"])
def test_a_name_that_could_leave_the_registrys_folder_is_refused(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match="not a model name"):
        register(registry, write_adapter(tmp_path / "a"), model=name)
    with pytest.raises(UserError, match="not a model name"):
        registry.alias(name, "production")
    with pytest.raises(UserError, match="not an? alias name"):
        registry.alias("bot", name)


# -- adapters that must not get in -------------------------------------------------------------------------------

A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
POISONED = {
    "nan": ({"tensors": {A: np.full((2, 6), np.nan, np.float32)}}, "not finite"),
    "inf": ({"tensors": {B: np.full((4, 2), np.inf, np.float32)}}, "not finite"),
    "untrained": ({"tensors": {B: np.zeros((4, 2), np.float32)}}, "every lora_B is zero"),
    "empty shard": ({"tensors": {B: np.zeros((0,), np.float32)}}, "shape"),
    "other rank": ({"r": 4}, "does not fit r=4"),
    "extra tensor": ({"tensors": {"lm_head.weight": np.ones((2, 2), np.float32)}}, "neither"),
    "no partner": ({"tensors": {"x.lora_A.weight": np.ones((2, 6), np.float32)}}, "no partner"),
    "integers": ({"tensors": {A: np.ones((2, 6), np.int32)}}, "dtype"),
    "alpha 1e6": ({"lora_alpha": 1e6}, "scales the adapter"),
    "alpha nan": ({"lora_alpha": float("nan")}, "lora_alpha"),
    "alpha text": ({"lora_alpha": "16"}, "lora_alpha"),
    "rank 0": ({"r": 0}, "r=0"),
    "rank true": ({"r": True}, "r=True"),
    "other method": ({"peft_type": "IA3"}, "IA3"),
    "dora": ({"use_dora": True}, "use_dora"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "rank pattern": ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
}


@pytest.mark.parametrize("case", POISONED)
def test_a_poisoned_adapter_is_refused_and_leaves_nothing_behind(
    registry: Registry, store: Store, tmp_path: Path, case: str
) -> None:
    given, reason = POISONED[case]
    with pytest.raises(UserError, match=reason):
        register(registry, write_adapter(tmp_path / "a", **given))
    assert registry.models() == [] and store.list("models") == []


@pytest.mark.parametrize(
    "name", ["adapter_model.bin", "modeling.py", "weights.pkl", "nested/x.json"]
)
def test_a_file_that_does_not_belong_to_an_adapter_is_refused(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    adapter = write_adapter(tmp_path / "a")
    (adapter / name).parent.mkdir(exist_ok=True)
    (adapter / name).write_text("print('hello')")
    with pytest.raises(UserError, match=name.split("/")[0]):
        register(registry, adapter)


def test_links_and_broken_files_are_refused(registry: Registry, tmp_path: Path) -> None:
    linked = write_adapter(tmp_path / "linked")
    (tmp_path / "elsewhere").write_bytes((linked / "adapter_model.safetensors").read_bytes())
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(tmp_path / "elsewhere")
    cut = write_adapter(tmp_path / "cut")
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[:-4])
    words = write_adapter(tmp_path / "words")
    (words / "adapter_config.json").write_text("[]")
    for adapter, reason in (
        (linked, "plain files"),
        (cut, "safetensors"),
        (words, "LoRA configuration"),
    ):
        with pytest.raises(UserError, match=reason):
            register(registry, adapter)
    with pytest.raises(UserError, match="no adapter_config.json"):
        register(registry, tmp_path / "nowhere")
    with pytest.raises(UserError, match="fingerprint"):
        register(registry, write_adapter(tmp_path / "sound"), base_fingerprint="")


def test_bfloat16_weights_are_read_for_what_they_are(registry: Registry, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    adapter = write_adapter(tmp_path / "a")
    sound = {A: torch.ones(2, 6, dtype=torch.bfloat16), B: torch.ones(4, 2, dtype=torch.bfloat16)}
    save_torch(sound, str(adapter / "adapter_model.safetensors"))
    assert register(registry, adapter).name == "bot"
    for value, reason in (
        (float("nan"), "not finite"),
        (float("-inf"), "not finite"),
        (0.0, "zero"),
        (-0.0, "zero"),
    ):
        save_torch(
            {**sound, B: torch.full_like(sound[B], value)},
            str(adapter / "adapter_model.safetensors"),
        )
        with pytest.raises(UserError, match=reason):
            register(registry, adapter)


# -- aliases -----------------------------------------------------------------------------------------------------


def test_promotions_and_rollbacks_are_history_and_go_back_step_by_step(
    registry: Registry, tmp_path: Path
) -> None:
    a, b, c = (register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(3))
    for revision, version in enumerate((a, b, c)):
        registry.promote("bot", "production", version, revision, reason=f"move {revision}")
    assert registry.rollback("bot", "production").version_id == b
    assert registry.rollback("bot", "production").version_id == a
    with pytest.raises(UserError, match="no version before it"):
        registry.rollback("bot", "production")
    registry.promote("bot", "production", c, 5)
    assert registry.rollback("bot", "production").version_id == a
    moves = registry.history("bot", "production")
    assert [(m.alias.revision, m.action, m.alias.version_id) for m in moves] == [
        (1, "promote", a),
        (2, "promote", b),
        (3, "promote", c),
        (4, "rollback", b),
        (5, "rollback", a),
        (6, "promote", c),
        (7, "rollback", a),
    ]
    assert moves[1].reason == "move 1"
    held = registry.alias("bot", "production")
    assert held == moves[-1].alias and registry.aliases("bot") == [held]


def test_a_move_from_a_revision_that_is_not_the_present_one_loses(
    registry: Registry, tmp_path: Path
) -> None:
    a, b = (register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(2))
    registry.promote("bot", "production", a, 0)
    for stale in (0, 2, 7):
        with pytest.raises(
            AliasMovedError, match=rf"expected revision {stale}, but it is at {a}, revision 1"
        ):
            registry.promote("bot", "production", b, stale)
    assert len(registry.history("bot", "production")) == 1
    assert registry.alias("bot", "staging") is None


def test_an_alias_never_points_at_another_models_or_an_unknown_version(
    registry: Registry, tmp_path: Path
) -> None:
    version = register(registry, write_adapter(tmp_path / "a"))
    with pytest.raises(UserError, match="not a version of cat"):
        registry.promote("cat", "production", version.id, 0)
    with pytest.raises(UserError, match="no such version"):
        registry.promote("bot", "production", "bot@0123456789ab", 0)
    assert registry.alias("cat", "production") is None


def test_an_object_store_keeps_versions_and_aliases_the_same_way(tmp_path: Path) -> None:
    registry = Registry(Store("memory://registry-test", cache_dir=tmp_path / "cache"))
    version = register(registry, write_adapter(tmp_path / "a"))
    registry.promote("bot", "production", version.id, 0)
    with pytest.raises(AliasMovedError):
        registry.promote("bot", "production", version.id, 0)
    assert registry.get("bot") == version
    assert (registry.adapter_dir(version) / "adapter_config.json").is_file()


# -- races -------------------------------------------------------------------------------------------------------

NUM_WRITERS, NUM_ROUNDS = 16, 20


def _promote_in_rounds(uri: str, version_id: str, barrier: Any, wins: Any) -> None:
    """Every round all writers hold the same expectation; the winner counts itself."""
    registry = Registry(Store(uri))
    for revision in range(NUM_ROUNDS):
        barrier.wait(timeout=30)
        try:
            registry.promote("bot", "production", version_id, revision, reason=version_id)
        except AliasMovedError:
            continue
        with wins.get_lock():
            wins[revision] += 1


def _read_until(uri: str, done: Any, num_reads: Any) -> None:
    """Reads all the time; a torn file raises, a step back fails, and either is this process's exit code."""
    registry, seen = Registry(Store(uri)), 0
    while not done.is_set() or seen < NUM_ROUNDS:
        held = registry.alias("bot", "production")
        revision = held.revision if held else 0
        assert revision >= seen, f"went back from {seen} to {revision}"
        seen = revision
        num_reads.value += 1


def test_of_sixteen_processes_exactly_one_wins_each_revision(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    ids = [
        register(registry, write_adapter(tmp_path / str(i), seed=i)).id for i in range(NUM_WRITERS)
    ]
    fork = multiprocessing.get_context("fork")
    wins, num_reads, done = fork.Array("i", NUM_ROUNDS), fork.Value("i", 0), fork.Event()
    barrier = fork.Barrier(NUM_WRITERS)
    reader = fork.Process(target=_read_until, args=(store.uri, done, num_reads))
    writers = [
        fork.Process(target=_promote_in_rounds, args=(store.uri, i, barrier, wins)) for i in ids
    ]
    for process in (reader, *writers):
        process.start()
    for writer in writers:
        writer.join(60)
    done.set()
    reader.join(60)
    assert [p.exitcode for p in (reader, *writers)] == [0] * (1 + NUM_WRITERS)
    assert wins[:] == [1] * NUM_ROUNDS
    moves = registry.history("bot", "production")
    assert [m.alias.revision for m in moves] == list(range(1, NUM_ROUNDS + 1))
    assert all(m.reason == m.alias.version_id for m in moves)
    assert num_reads.value > NUM_ROUNDS


def _promote_for_ever(uri: str, version_id: str) -> None:
    registry = Registry(Store(uri))
    while True:
        held = registry.alias("bot", "production")
        registry.promote("bot", "production", version_id, held.revision if held else 0)


def test_a_writer_killed_at_any_moment_leaves_a_registry_that_reads_and_moves(
    registry: Registry, store: Store, tmp_path: Path
) -> None:
    version_id = register(registry, write_adapter(tmp_path / "a")).id
    fork = multiprocessing.get_context("fork")
    for pause_s in (0.0, 0.003, 0.007, 0.011, 0.016, 0.023):
        writer = fork.Process(target=_promote_for_ever, args=(store.uri, version_id))
        before = len(registry.history("bot", "production"))
        writer.start()
        while len(registry.history("bot", "production")) < before + 2:
            assert writer.is_alive(), "the writer met an error"
            time.sleep(0.001)
        time.sleep(pause_s)
        writer.kill()
        writer.join()
        moves = registry.history("bot", "production")
        assert [m.alias.revision for m in moves] == list(range(1, len(moves) + 1))
        registry.promote("bot", "production", version_id, len(moves))


def test_the_registry_loads_neither_torch_nor_ray() -> None:
    heavy = "{'torch', 'ray', 'peft', 'transformers'}"
    code = f"import sys, pipelines.registry.registry; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
