"""A local store: whole artifacts or none, whatever stops a writer or runs beside it."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.storage import Store, claimed, remove, verify
from pipelines.storage.folders import publish

KEY = "k" * 64
fork = multiprocessing.get_context("fork")


def write(store: Store, key: str = KEY, text: str = "hello", num_files: int = 3) -> Any:
    """One artifact of a few files in two folders; returns its reference."""
    with store.create_artifact("things", key, {"made-from": "p" * 64}) as draft:
        (draft.path / "deep" / "er").mkdir(parents=True)
        for number in range(num_files):
            (draft.path / "deep" / "er" / f"{number}.txt").write_text(text)
        (draft.path / "top.bin").write_bytes(bytes(range(256)))
        draft.metadata["text"] = text
    return draft.ref


def final_names(store: Store) -> list[str]:
    """What a reader of the store's folder sees under names that are not hidden."""
    return store.names("things")


def leftovers(store: Store) -> list[str]:
    return [p.name for p in Path(store.uri, "things").iterdir() if p.name.startswith(".")]


def test_a_written_artifact_is_found_by_key_and_by_id_with_its_metadata_and_files(
    store: Store,
) -> None:
    ref = write(store)
    found = store.find("things", KEY)
    assert found is not None and found.ref == ref and found.metadata == {"text": "hello"}
    assert sorted(found.files) == ["deep/er/0.txt", "deep/er/1.txt", "deep/er/2.txt", "top.bin"]
    assert found.files["top.bin"]["bytes"] == 256
    assert store.list("things") == [found] == [store.by_id("things", KEY[:12])]
    assert store.local_dir(ref) == Path(store.uri, "things", KEY[:12])
    assert verify(store.local_dir(ref))["parents"] == {"made-from": "p" * 64} == ref.parents
    assert (
        store.find("things", "x" * 64) is None
        and store.list("nothing") == []
        and leftovers(store) == []
    )


def test_the_digest_is_of_the_content_and_the_parents_not_of_time_or_metadata(
    store: Store, tmp_path: Path
) -> None:
    ref = write(store)
    other = Store(tmp_path / "other")
    assert write(other).digest == ref.digest
    assert write(other, "b" * 64, text="other").digest != ref.digest
    assert write(other, "c" * 64, num_files=4).digest != ref.digest


def test_an_id_that_is_missing_or_too_short_is_refused_with_the_ids_that_exist(
    store: Store,
) -> None:
    ref = write(store)
    for prefix, problem in (
        ("0" * 64, "no finished artifact of kind 'things' has the id 0"),
        (ref.digest, "no finished artifact of kind 'things'"),
        (KEY[:3], "too short for an id"),
        ("", "too short for an id"),
    ):
        with pytest.raises(UserError, match=rf"{problem}.*there are {ref.name}"):
            store.by_id("things", prefix)
    with pytest.raises(UserError, match="there are none"):
        store.by_id("nothing", KEY)


def test_a_prefix_of_several_ids_is_refused_with_those_ids(store: Store) -> None:
    keys = ["abcd" + letter * 60 for letter in "12"]
    refs = [write(store, key) for key in (*keys, "f" * 64)]
    with pytest.raises(UserError, match=r"several ids .* abcd: abcd1{8}, abcd2{8}; give more"):
        store.by_id("things", "abcd")
    for prefix in ("abcd1", refs[0].name, keys[0]):
        assert store.by_id("things", prefix).ref == refs[0]
    assert store.by_id("things", "ffff").ref == refs[2]


def test_an_error_inside_leaves_nothing_at_all(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.create_artifact("things", KEY) as draft:
        (draft.path / "half").write_text("half")
        raise ZeroDivisionError
    assert final_names(store) == [] == leftovers(store)


def _hang_in_the_middle(uri: str, started: Any) -> None:
    with Store(uri).create_artifact("things", KEY) as draft:
        (draft.path / "half").write_text("half")
        started.set()
        time.sleep(60)


def test_a_writer_killed_in_the_middle_leaves_no_final_name_and_the_next_one_clears_up(
    store: Store,
) -> None:
    started = fork.Event()
    writer = fork.Process(target=_hang_in_the_middle, args=(store.uri, started))
    writer.start()
    assert started.wait(20)
    alive = leftovers(store)
    write(store, key="o" * 64)
    assert (
        leftovers(store) == alive and len(alive) == 1
    )  # one at work is left alone by writers of other keys ...
    with store.create_artifact("things", KEY) as draft:
        (draft.path / "a").write_text("a")
        assert len(leftovers(store)) == 2  # ... and of its own
    Path(
        store.uri, "things", KEY[:12], "a"
    ).unlink()  # damaged, so that the next writer has work to do
    writer.kill()
    writer.join()
    assert leftovers(store) == alive and store.find("things", KEY) is None
    ref = write(store)
    assert leftovers(store) == [] and verify(store.local_dir(ref))["digest"] == ref.digest


def _write_for_ever(uri: str, done: Any) -> None:
    store = Store(uri)
    for number in range(10**6):
        write(store, key=f"{number:012d}" + "k" * 52, num_files=12)
        done.value = number + 1


@pytest.mark.parametrize("pause_s", [0.0, 0.002, 0.005, 0.009, 0.014, 0.02])
def test_a_writer_killed_at_any_moment_leaves_only_whole_artifacts(
    store: Store, pause_s: float
) -> None:
    done = fork.Value("i", 0)
    writer = fork.Process(target=_write_for_ever, args=(store.uri, done))
    writer.start()
    while done.value < 2:
        assert writer.is_alive()
        time.sleep(0.001)
    time.sleep(pause_s)
    writer.kill()
    writer.join()
    found = store.list("things")
    assert len(found) == len(final_names(store)) >= done.value
    for artifact in found:
        verify(store.local_dir(artifact.ref))


def _write_at_once(uri: str, text: str, barrier: Any, digests: Any) -> None:
    store = Store(uri)
    barrier.wait(timeout=30)
    digests.put(write(store, text=text).digest)


@pytest.mark.parametrize("broken_before", [False, True])
def test_of_many_writers_of_one_key_one_stays_and_all_hold_its_reference(
    store: Store, broken_before: bool
) -> None:
    for number in range(4):
        kind = Store(f"{store.uri}/{number}")
        if broken_before:
            Path(kind.uri, "things", KEY[:12]).mkdir(parents=True)
            Path(kind.uri, "things", KEY[:12], "half").write_text("half")
        barrier, digests = fork.Barrier(6), fork.Queue()
        writers = [
            fork.Process(target=_write_at_once, args=(kind.uri, str(i), barrier, digests))
            for i in range(6)
        ]
        for writer in writers:
            writer.start()
        seen = {digests.get(timeout=30) for _ in writers}
        for writer in writers:
            writer.join(30)
        assert [w.exitcode for w in writers] == [0] * 6
        found = kind.find("things", KEY)
        assert found is not None and seen == {found.ref.digest} == {
            verify(kind.local_dir(found.ref))["digest"]
        }
        assert leftovers(kind) == [] and final_names(kind) == [KEY[:12]]


def test_the_first_whole_artifact_of_a_key_stays(store: Store) -> None:
    first = write(store, text="first")
    assert write(store, text="second") == first
    assert (store.local_dir(first) / "deep" / "er" / "0.txt").read_text() == "first"


DAMAGED = {
    "empty": b"",
    "cut": b'{"schema": 1, "kind": "things"',
    "a list": b"[]",
    "text": b'"x"',
    "null": b"null",
    "no UTF-8": b"\xff\xfe{}",
    "no files": b'{"kind": "things", "key": "KEY", "digest": "d", "parents": {}, "schema": 2, "metadata": {}}',
    "files no mapping": b'{"kind": "things", "key": "KEY", "digest": "d", "parents": {}, "schema": 2, "metadata": {}, "files": 3}',
    "outside": b'{"kind": "t", "key": "KEY", "digest": "d", "parents": {}, "schema": 2, "metadata": {}, "files": {"../../../x": {}}}',
    "absolute": b'{"kind": "t", "key": "KEY", "digest": "d", "parents": {}, "schema": 2, "metadata": {}, "files": {"/etc/passwd": {}}}',
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_manifest_is_not_finished_and_is_written_anew(
    store: Store, tmp_path: Path, case: str
) -> None:
    ref = write(store)
    (store.local_dir(ref) / "manifest.json").write_bytes(
        DAMAGED[case].replace(b"KEY", KEY.encode())
    )
    (tmp_path / "x").write_text("what the manifest must not reach")
    assert store.find("things", KEY) is None and store.list("things") == []
    with pytest.raises(UserError):
        verify(store.local_dir(ref))
    assert write(store) == ref and verify(store.local_dir(ref))["digest"] == ref.digest


def test_an_artifact_without_one_of_its_files_or_of_another_key_is_not_finished(
    store: Store,
) -> None:
    ref = write(store)
    (store.local_dir(ref) / "top.bin").unlink()
    assert store.find("things", KEY) is None and store.read(ref.uri) is None
    write(store)
    assert store.find("things", KEY) is not None
    assert store.find("things", KEY[:12] + "other" * 10) is None


def test_verify_names_the_file_that_is_altered_resized_or_missing(store: Store) -> None:
    ref = write(store)
    folder = store.local_dir(ref)
    whole = (folder / "top.bin").read_bytes()
    for damaged, said in (
        (b"\1" + whole[1:], "damaged"),
        (whole + b"x", "damaged"),
        (b"", "damaged"),
        (None, "missing"),
    ):
        (folder / "top.bin").unlink() if damaged is None else (folder / "top.bin").write_bytes(
            damaged
        )
        with pytest.raises(UserError, match=rf"{folder}/top.bin: .*{said}"):
            verify(folder)
    (folder / "top.bin").write_bytes(whole)
    assert verify(folder)["digest"] == ref.digest
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest.json: missing or unreadable"):
        verify(folder)


def test_files_get_the_users_own_permissions(store: Store) -> None:
    ref = write(store)
    plain = Path(store.uri, "plain")
    plain.mkdir()
    assert store.local_dir(ref).stat().st_mode == plain.stat().st_mode
    (plain / "file").touch()
    store.create_file(f"{store.uri}/once", "x")
    assert Path(store.uri, "once").stat().st_mode == (plain / "file").stat().st_mode


def _create_in_rounds(uri: str, who: int, barrier: Any, wins: Any) -> None:
    store = Store(uri)
    for number in range(20):
        barrier.wait(timeout=30)
        if store.create_file(f"{uri}/deep/folder/{number}.json", json.dumps([who] * 2000)):
            with wins.get_lock():
                wins[number] += 1


def test_of_many_processes_that_create_one_file_exactly_one_wins_and_it_is_whole(
    store: Store,
) -> None:
    barrier, wins = fork.Barrier(8), fork.Array("i", 20)
    writers = [
        fork.Process(target=_create_in_rounds, args=(store.uri, i, barrier, wins)) for i in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [w.exitcode for w in writers] == [0] * 8 and wins[:] == [1] * 20
    assert sorted(p.name for p in Path(store.uri, "deep/folder").iterdir()) == sorted(
        f"{n}.json" for n in range(20)
    )
    for number in range(20):
        assert (
            len(set(json.loads(store.read_text(f"{store.uri}/deep/folder/{number}.json") or "")))
            == 1
        )


def test_a_place_can_be_named_as_a_path_or_a_file_uri(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        Store("s").uri
        == Store(f"file://{tmp_path}/s").uri
        == Store(tmp_path / "s").uri
        == f"{tmp_path}/s"
    )


def test_what_was_published_is_never_cleared_away_by_a_writer_that_saw_the_broken_folder_before_it(
    tmp_path: Path,
) -> None:
    for name in ("final", "slow", "fast"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    looked = threading.Event()

    def is_whole_slowly() -> bool:
        whole = (tmp_path / "final" / "text").read_text() != "final"
        looked.set()
        time.sleep(0.3)
        return whole

    slow = threading.Thread(
        target=publish, args=(tmp_path / "slow", tmp_path / "final", is_whole_slowly)
    )
    slow.start()
    assert looked.wait(10)
    publish(
        tmp_path / "fast",
        tmp_path / "final",
        lambda: (tmp_path / "final" / "text").read_text() != "final",
    )
    seen = (tmp_path / "final" / "text").read_text()
    slow.join(10)
    assert (tmp_path / "final" / "text").read_text() == seen == "slow"


def _claim_and_wait(folder: Path, held: Any) -> None:
    with claimed(folder, "paints it"):
        held.set()
        time.sleep(60)


def test_a_claimed_folder_is_refused_by_name_until_its_holder_ends_or_dies(tmp_path: Path) -> None:
    folder, context = tmp_path / "wall", multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_claim_and_wait, args=(folder, held))
    holder.start()
    assert held.wait(20)
    with (
        pytest.raises(
            UserError, match=rf"wall: process {holder.pid} on .* paints it already; wait"
        ),
        claimed(folder, "paints it"),
    ):
        pass
    holder.kill()
    holder.join()
    for _ in range(2):
        with claimed(folder, "paints it"):
            pass


def test_a_folder_is_deleted_without_anyone_seeing_a_part_of_it(tmp_path: Path) -> None:
    """A reader looks all the time: what has its name has all its files. A killed deletion's rest goes with the next."""
    (tmp_path / ".gone-other-0000" / "sub").mkdir(parents=True)
    torn, ended = [], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for number in range(30):
                folder = tmp_path / f"whole-{number}"
                with contextlib.suppress(FileNotFoundError):
                    if len(os.listdir(folder)) != 40 and folder.exists():
                        torn.append(number)

    for number in range(30):
        (tmp_path / "new").mkdir()
        for file in range(40):
            (tmp_path / "new" / str(file)).touch()
        os.rename(tmp_path / "new", tmp_path / f"whole-{number}")
    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(30):
        remove(tmp_path / f"whole-{number}")
    remove(tmp_path / "never")
    ended.set()
    reader.join()
    assert not torn and not list(tmp_path.iterdir())
