"""A file is hashed once while it is the same, and again as soon as it could have changed."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import fsspec
import pytest

from pipelines.core.errors import UserError
from pipelines.sources import hashes
from pipelines.sources.base_files import base_fingerprint, weight_files
from pipelines.sources.hashes import FileHashes

CONTENT = b"rows" * 1000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as old enough to be trusted."""
    monkeypatch.setattr(hashes, "_SETTLED_NS", -1)
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    return path


def test_a_digest_is_remembered_by_the_object_and_by_the_next_command(
    file: Path, tmp_path: Path
) -> None:
    first = FileHashes(tmp_path / "cache")
    for _ in range(3):
        assert first.sha256(file) == hashlib.sha256(CONTENT).hexdigest()
    assert first.paths == [str(file)] and first.num_bytes == len(CONTENT)
    second = FileHashes(tmp_path / "cache")
    assert second.sha256(file) == hashlib.sha256(CONTENT).hexdigest() and second.paths == []


def test_verify_hashes_again_once(file: Path, tmp_path: Path) -> None:
    FileHashes(tmp_path / "cache").sha256(file)
    verifying = FileHashes(tmp_path / "cache", verify=True)
    verifying.sha256(file)
    verifying.sha256(file)
    assert len(verifying.paths) == 1


def test_fresh_takes_only_what_this_object_read_itself(file: Path, tmp_path: Path) -> None:
    FileHashes(tmp_path / "cache").sha256(file)
    second = FileHashes(tmp_path / "cache")
    second.sha256(file)
    assert second.paths == []
    second.sha256(file, fresh=True)
    assert second.paths == [str(file)]
    second.sha256(file, fresh=True)
    assert len(second.paths) == 1


@pytest.mark.parametrize("change", ["content", "times", "replaced"])
def test_a_file_that_could_have_changed_is_hashed_again(
    file: Path, tmp_path: Path, change: str
) -> None:
    FileHashes(tmp_path / "cache").sha256(file)
    time.sleep(0.02)
    if change == "content":
        file.write_bytes(CONTENT[:-1] + b"!")
    elif change == "times":
        status = file.stat()
        file.write_bytes(CONTENT[:-1] + b"!")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))  # ctime still tells
    else:
        other = tmp_path / "other"
        other.write_bytes(CONTENT[:-1] + b"!")
        os.replace(other, file)
    digest = hashlib.sha256(CONTENT[:-1] + b"!").hexdigest()
    assert FileHashes(tmp_path / "cache").sha256(file) == digest


def test_a_file_written_just_now_gets_no_stored_entry(tmp_path: Path) -> None:
    file = tmp_path / "young"
    file.write_bytes(CONTENT)
    first = FileHashes(tmp_path / "cache")
    first.sha256(file)
    first.sha256(file)
    assert len(first.paths) == 1
    second = FileHashes(tmp_path / "cache")
    second.sha256(file)
    assert second.paths == [str(file)]


def test_a_damaged_or_unwritable_cache_only_costs_time(file: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    FileHashes(cache).sha256(file)
    for entry in cache.rglob("*.json"):
        entry.write_text("{")
    again = FileHashes(cache)
    assert again.sha256(file) == hashlib.sha256(CONTENT).hexdigest() and len(again.paths) == 1
    (tmp_path / "taken").write_text("a file where the cache's folder would be")
    nowhere = FileHashes(tmp_path / "taken")
    assert nowhere.sha256(file) == hashlib.sha256(CONTENT).hexdigest()


def test_an_object_goes_by_its_etag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/hashes/rows", CONTENT)
    uri = "memory://hashes/rows"
    etags: dict[str, str] = {}
    monkeypatch.setattr(hashes, "_etag", etags.get)
    without = FileHashes(tmp_path / "cache")
    without.sha256(uri)
    without.sha256(uri)
    assert without.paths == [uri, uri], "nothing says that the object is still the same"
    etags[uri] = "1"
    FileHashes(tmp_path / "cache").sha256(uri)
    second = FileHashes(tmp_path / "cache")
    second.sha256(uri)
    assert second.paths == []
    etags[uri] = "2"
    second.sha256(uri)
    assert second.paths == [uri]


def test_a_fact_is_computed_again_when_one_of_its_files_changes(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("a")
    calls: list[str] = []

    def compute() -> dict[str, str]:
        calls.append("called")
        return {"text": other.read_text()}

    for _ in range(2):
        facts = FileHashes(tmp_path / "cache").remember("fact", [file, other], compute)
        assert facts == {"text": "a"}
    assert len(calls) == 1
    time.sleep(0.02)
    other.write_text("b")
    facts = FileHashes(tmp_path / "cache").remember("fact", [file, other], compute)
    assert facts == {"text": "b"}
    assert FileHashes(tmp_path / "cache").remember("fact 2", [file, other], compute) == facts
    assert len(calls) == 3


def test_a_bases_weights_are_read_once(pocket_base: str, tmp_path: Path) -> None:
    first = FileHashes(tmp_path / "cache")
    fingerprint = base_fingerprint(pocket_base, hashes=first)
    assert first.paths == [str(path) for path in weight_files(pocket_base)]
    assert base_fingerprint(pocket_base, hashes=first, fresh=True) == fingerprint
    assert len(first.paths) == len(weight_files(pocket_base))
    second = FileHashes(tmp_path / "cache")
    assert base_fingerprint(pocket_base, hashes=second) == fingerprint and second.paths == []


def test_a_remote_file_that_cannot_be_read_is_a_user_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ClientError(Exception):
        pass

    def refuse(path: str) -> None:
        raise ClientError("503, message='Service\nUnavailable'")

    monkeypatch.setattr(hashes, "client_errors", lambda: [ClientError])
    monkeypatch.setattr(hashes, "open_binary", refuse)
    with pytest.raises(UserError, match="memory://a: cannot be read .503, message='Service Unav"):
        FileHashes(tmp_path / "cache").sha256("memory://a")


def test_a_weak_etag_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    class FileSystem:
        def info(self, name: str) -> dict[str, str]:
            return {"ETag": name}

    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda uri: (FileSystem(), uri.split("//")[1]))
    assert hashes._etag('s3://"strong"') == '"strong"'
    assert hashes._etag('s3://W/"weak"') is None
