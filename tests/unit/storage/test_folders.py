"""Folders on a local disk: published, claimed and deleted atomically."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.errors import UserError
from pipelines.storage import claimed, remove
from pipelines.storage.folders import publish

fork = multiprocessing.get_context("fork")


def test_a_published_folder_survives_a_writer_that_saw_the_broken_folder_before_it(
    tmp_path: Path,
) -> None:
    for name in ("final", "slow", "fast"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    text, looked = tmp_path / "final" / "text", threading.Event()

    def is_complete() -> bool:
        return text.read_text() != "final"

    def is_complete_slowly() -> bool:
        complete = is_complete()
        looked.set()
        time.sleep(0.3)
        return complete

    arguments = (tmp_path / "slow", tmp_path / "final", is_complete_slowly)
    slow = threading.Thread(target=publish, args=arguments)
    slow.start()
    assert looked.wait(10)
    publish(tmp_path / "fast", tmp_path / "final", is_complete)
    published = text.read_text()
    slow.join(10)
    assert text.read_text() == published == "slow"


def _claim_and_wait(folder: Path, claimed_event: Any) -> None:
    with claimed(folder, "paints it"):
        claimed_event.set()
        time.sleep(60)


def test_a_claimed_folder_is_refused_by_name_until_its_holder_ends_or_dies(tmp_path: Path) -> None:
    folder, event = tmp_path / "wall", fork.Event()
    holder = fork.Process(target=_claim_and_wait, args=(folder, event))
    holder.start()
    assert event.wait(20)
    refusal = rf"wall: process {holder.pid} on .* paints it already; wait"
    with pytest.raises(UserError, match=refusal), claimed(folder, "paints it"):
        pass
    holder.kill()
    holder.join()
    for _ in range(2):
        with claimed(folder, "paints it"):
            pass


def test_a_reader_never_sees_a_partly_deleted_folder(tmp_path: Path) -> None:
    """A reader lists the folders all the time; a killed deletion's rest goes with the next one."""
    (tmp_path / ".gone-other-0000" / "sub").mkdir(parents=True)
    partial, ended = [], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for number in range(30):
                folder = tmp_path / f"folder-{number}"
                with contextlib.suppress(FileNotFoundError):
                    if len(os.listdir(folder)) != 40 and folder.exists():
                        partial.append(number)

    for number in range(30):
        (tmp_path / "new").mkdir()
        for file in range(40):
            (tmp_path / "new" / str(file)).touch()
        os.rename(tmp_path / "new", tmp_path / f"folder-{number}")
    reader = threading.Thread(target=watch)
    reader.start()
    for number in range(30):
        remove(tmp_path / f"folder-{number}")
    remove(tmp_path / "never")
    ended.set()
    reader.join()
    assert not partial and not list(tmp_path.iterdir())
