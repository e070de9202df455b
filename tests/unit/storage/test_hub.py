"""Downloads of a base from a stand-in Hub on 127.0.0.1: bar, Ctrl-C, a line for each failure."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from pipelines.core.errors import UserError
from pipelines.storage import hub, hub_download, local_base_dir
from pipelines.storage.hub_errors import describe_hub_error
from tests.unit.storage.stand_in_hub import FILES, StandIn


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HTTPS_PROXY", "HTTP_PROXY",
                 "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_snapshots", {})
    server = StandIn()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", f"{server.url}/hub")
    # For calls in this process: huggingface_hub has read the environment already.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"{server.url}/hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf/hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", constants.DOWNLOAD_CHUNK_SIZE)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


class Recorded:
    """A progress that keeps its notes, its bars' names and totals, and how far each step went."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: list[tuple[str, int | None]] = []
        self.steps: list[int] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def bar(self, name: str, total: int | None = None) -> Any:
        self.bars.append((name, total))
        return nullcontext(lambda count=1, text="": self.steps.append(count))


def refusal(base: str, revision: str | None = None) -> str:
    """The line of a failed download, made in this process: quicker than in one of its own."""
    with pytest.raises(Exception) as caught:
        hub_download.download(base, revision, ["*.json"])
    text = describe_hub_error(base, revision, caught.value)
    assert text.startswith(f"model.base={base}: ") and "\n" not in text
    return text


def test_a_download_draws_a_bar_that_moves_while_bytes_come(stand_in: StandIn) -> None:
    progress = Recorded()
    folder = local_base_dir("org/slow", progress=progress)
    assert {path.name for path in folder.iterdir()} == set(FILES) - {"pytorch_model.bin"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert progress.bars == [("download org/slow (MB)", 4)]
    assert sum(progress.steps) == 4 and len(progress.steps) > 1
    assert "4 files, 3.5 MB, into" in progress.notes[0] and "hf/hub" in progress.notes[0]


def test_a_cached_base_is_found_without_a_bar_and_asked_for_once_a_process(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_base_dir("org/fine")
    asked = len(stand_in.requests)
    assert local_base_dir("org/fine", weights=False) == local_base_dir("org/fine") == folder
    assert len(stand_in.requests) == asked
    monkeypatch.setattr(hub, "_snapshots", {})
    progress = Recorded()
    assert local_base_dir("org/fine", progress=progress) == folder
    assert not progress.bars and not progress.notes
    assert not any("/resolve/" in request for request in stand_in.requests[asked:])


def test_only_what_is_wanted_is_downloaded(stand_in: StandIn) -> None:
    folder = local_base_dir("org/fine", weights=False)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "chat_template.jinja",
    }
    assert not any(request.endswith(".safetensors") for request in stand_in.requests)
    assert (local_base_dir("org/fine") / "model.safetensors").is_file()
    assert not any(request.endswith(".bin") for request in stand_in.requests)


def test_a_refused_download_is_a_user_error(stand_in: StandIn) -> None:
    with pytest.raises(UserError, match="model.base=org/gated: the model is gated .*Please log in"):
        local_base_dir("org/gated")


@pytest.mark.parametrize(
    ("repo", "parts"),
    {
        "gated": ["gated", "Please log in", "accept its terms at", "HF_TOKEN"],
        "unlisted": ["access list", "You are not in the list", "ask for access at"],
        "token": ["refused your token", "Invalid credentials", "/settings/tokens"],
        "expired": ["refused your token", "is expired", "/settings/tokens"],
        "unknown": ["neither a folder nor a model", "Invalid username", "check the spelling"],
        "disabled": ["has disabled the model", "Access to this resource is disabled"],
        "forbidden": ["HTTP 403", "Your network is not allowed", "permission"],
        "revision": ["no revision 1.0", "Invalid rev id", "model.revision"],
        "busy": ["HTTP 429", "We had to rate limit you", "wait"],
        "proxy": ["407", "Who are you?", "check the proxy's address"],
        "down": ["HTTP 501", "We are repairing the Hub", "try again later"],
    }.items(),
)
def test_each_refusal_has_its_line_with_the_hubs_words_and_what_to_do(
    stand_in: StandIn, repo: str, parts: list[str]
) -> None:
    text = refusal(f"org/{repo}", "1.0")
    assert all(part in text for part in parts), text


@pytest.mark.parametrize(
    ("endpoint", "parts"),
    {
        "portal": ["a web page", '"Hotel WiFi"', "log in", "HF_ENDPOINT"],
        "mirror": ["not as the Hub does", "set HF_ENDPOINT"],
        "plain": ["not as the Hub does", '"OK"', "set HF_ENDPOINT"],
    }.items(),
)
def test_an_answer_that_is_not_the_hubs_is_named_as_one(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, endpoint: str, parts: list[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"{stand_in.url}/{endpoint}")
    monkeypatch.setattr(constants, "ENDPOINT", f"{stand_in.url}/{endpoint}")
    text = refusal("org/fine")
    assert all(part in text for part in parts), text


def test_an_unreachable_hub_and_an_unreachable_proxy_are_named(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    text = refusal("org/fine")
    assert "http://127.0.0.1:1 cannot be reached" in text and "check the network" in text
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{stand_in.url.removeprefix('http://')}")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid/hub")
    close_session()  # the next one reads the proxy
    try:
        text = refusal("org/proxy")
    finally:
        close_session()
    assert "//***@" in text and "refused the connection (407" in text and "secret" not in text


def test_an_unreachable_hub_is_no_failure_for_a_cached_base(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_base_dir("org/fine")
    for name, value in (("HF_ENDPOINT", "http://127.0.0.1:1"), ("HF_HUB_OFFLINE", "1")):
        monkeypatch.setattr(hub, "_snapshots", {})
        monkeypatch.setenv(name, value)
        assert local_base_dir("org/fine") == folder


def test_offline_without_a_complete_copy_names_the_variable_that_forbids_the_download(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_base_dir("org/fine", weights=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for base, state in (("org/other", "is not there"), ("org/fine", "is not complete")):
        with pytest.raises(UserError, match="HF_HUB_OFFLINE is set and the copy .* " + state):
            local_base_dir(base)


@pytest.mark.parametrize("base", ["org/na me", "-x"])
def test_an_id_that_cannot_be_one_is_refused_without_asking(stand_in: StandIn, base: str) -> None:
    assert "neither a folder nor a Hub id" in refusal(base)
    assert not stand_in.requests


def test_a_cache_that_cannot_be_written_is_named(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=f"{tmp_path}/file/hub cannot be written .* set HF_HOME"):
        local_base_dir("org/fine")


def test_a_full_disk_is_named() -> None:
    text = describe_hub_error("org/a", None, OSError(errno.ENOSPC, "No space left on device"))
    assert "is full; free space or set HF_HOME" in text


def test_ctrl_c_ends_a_stalled_download_at_once_and_leaves_no_partial_file(
    stand_in: StandIn, tmp_path: Path
) -> None:
    script = textwrap.dedent(
        """
        import signal, sys
        from pipelines.storage import local_base_dir
        # A test run in the background hands SIGINT down as ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            local_base_dir("org/stalled")
        except KeyboardInterrupt:
            sys.exit(130)
        """
    )
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, start_new_session=True)
    try:
        assert stand_in.stalled.wait(60)
        assert list(tmp_path.rglob("*.incomplete"))
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
        assert process.wait(30) == 130
        assert time.monotonic() - started < 5
        assert not list(tmp_path.rglob("*.incomplete"))
    finally:
        process.kill()


def test_the_death_of_the_command_ends_its_download(stand_in: StandIn, tmp_path: Path) -> None:
    script = 'from pipelines.storage import local_base_dir; local_base_dir("org/stalled")'
    root = str(Path(__file__).parents[3])
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root)
    assert stand_in.stalled.wait(60)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while list(tmp_path.rglob("*.incomplete")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(tmp_path.rglob("*.incomplete"))
