"""The command itself: a mistake is one line with the key or path, code 2, at once, and nothing is
left half-written.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.config.load import load_recipe
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.storage import Store
from tests.stages import prepare

ROOT = Path(__file__).resolve().parents[3]
RECIPE = ROOT / "recipes" / "pocket_lora_person_cpu.yaml"
# Before Ray or torch: with these gone from the interpreter, the answer must be the same.
WITHOUT = "import sys; sys.modules.update(ray=None, torch=None); from jobs.cli import main; main()"
# Nothing answers there, so that these tests depend on no network.
ENVIRONMENT = os.environ | {
    "HF_ENDPOINT": "http://127.0.0.1:9",
    "HF_HUB_ETAG_TIMEOUT": "2",
    "COLUMNS": "200",
}


def loraforge(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False
    )


def refusal(*arguments: str | Path) -> str:
    """What the command says of a mistake: one line on stderr, nothing on stdout, code 2, without
    minutes of retries.
    """
    started = time.monotonic()
    done = loraforge(*arguments)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr[-2000:]
    assert done.stderr.startswith("loraforge: ") and done.stderr.count("\n") == 1
    assert time.monotonic() - started < 60
    return done.stderr.removeprefix("loraforge: ").rstrip()


def written(store: Path) -> list[str]:
    """Every file and folder of a store under a final name."""
    return [str(p.relative_to(store)) for p in store.rglob("*") if not p.name.startswith(".")]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of one's own, on the shipped base and a few rows."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"name: mine\nmodel:\n  base: {ROOT}/assets/pocket/model\ndata:\n  sources: [rows.jsonl]\n"
    )
    return path


def test_a_typo_in_a_recipe_or_on_the_command_line(recipe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    text = recipe.read_text()
    recipe.write_text(text + "trian:\n  epochs: 1\n")
    assert (
        refusal("run", recipe, "--store", store)
        == f"{recipe}: trian (line 6): unknown key; did you mean train?"
    )
    recipe.write_text(text)
    message = refusal(
        "train", recipe, "--store", store, "-s", "data.sources=[{path: x, formt: alpaca}]"
    )
    assert message.endswith(
        "data.sources.0.formt: unknown key; did you mean data.sources.0.format?"
    )
    assert not store.exists()


def test_an_unknown_format_or_file_type(recipe: Path, tmp_path: Path) -> None:
    message = refusal(
        "prepare",
        recipe,
        "--store",
        tmp_path / "store",
        "-s",
        "data.sources=[{path: x, format: alpca}]",
    )
    assert (
        "data.sources.0.format: Input should be 'auto', 'alpaca', " in message
        and message.endswith("(given: 'alpca')")
    )
    (tmp_path / "rows.docx").touch()
    message = refusal(
        "prepare", recipe, "--store", tmp_path / "store", "-s", f"data.sources={tmp_path}/rows.docx"
    )
    assert message.startswith(
        f"data.sources.0.path={tmp_path}/rows.docx: unknown file type .docx; valid: .json, "
    )
    assert written(tmp_path / "store") == []


@pytest.mark.parametrize(
    "verb", ["prepare", "train", "evaluate", "promote", "run", "demo", "submit"]
)
def test_a_missing_recipe(verb: str, recipe: Path) -> None:
    address = ["--address", "http://127.0.0.1:9"] if verb == "submit" else []
    message = refusal(
        verb, recipe.with_name("mein.yaml"), "--store", recipe.parent / "store", *address
    )
    assert (
        message
        == f"{recipe.parent}/mein.yaml: cannot read the recipe (No such file or directory); did "
        f"you mean {recipe}?"
    )


def test_a_missing_source(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").rename(tmp_path / "rows2.jsonl")
    message = refusal("run", recipe, "--store", tmp_path / "store")
    assert (
        message == f"data.sources.0.path={tmp_path}/rows.jsonl: no such file; did you mean "
        f"{tmp_path}/rows2.jsonl?"
    )
    assert written(tmp_path / "store") == []


def test_a_base_that_is_not_there(recipe: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    message = refusal(
        "run", recipe, "--store", store, "-s", f"model.base={ROOT}/assets/pocket/modle"
    )
    assert (
        message == f"model.base={ROOT}/assets/pocket/modle: no such folder; did you mean "
        f"{ROOT}/assets/pocket/model?"
    )
    message = refusal("run", recipe, "--store", store, "-s", "model.base=nobody/nothing")
    assert message.startswith("model.base=nobody/nothing: ")
    assert "set a folder" in message
    (tmp_path / "pickled").mkdir()
    assert "has no config.json" in refusal(
        "run", recipe, "--store", store, "-s", f"model.base={tmp_path}/pickled"
    )
    (tmp_path / "pickled" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "pickled" / "pytorch_model.bin").touch()
    message = refusal("run", recipe, "--store", store, "-s", f"model.base={tmp_path}/pickled")
    assert f"no *.safetensors in {tmp_path}/pickled; other weight formats can run code" in message
    assert written(store) == []


def test_a_store_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    message = refusal("run", recipe, "--store", tmp_path / "file")
    assert (
        message
        == f"{tmp_path}/file: a file with this name exists, where a folder is needed; choose "
        f"another place with --store"
    )
    assert refusal("run", recipe, "--store", "/proc/store").startswith(
        "/proc/store: the folder cannot be created"
    )
    assert "nowhere://x: Protocol not known" in refusal("run", recipe, "--store", "nowhere://x")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_stage_whose_input_was_never_made(recipe: Path, tmp_path: Path) -> None:
    message = refusal("train", recipe, "--store", tmp_path / "store")
    assert message.endswith(
        "no finished dataset of this recipe; run `loraforge prepare` first, or `loraforge run`"
    )
    message = refusal("train", recipe, "--store", tmp_path / "store", "--prepared", "0" * 12)
    assert message.endswith(
        "no finished artifact of kind 'prepared' has the id 000000000000; there are none"
    )


@pytest.mark.parametrize("verb", ["run", "promote"])
def test_a_whole_model_is_refused_where_a_version_would_be_made(
    recipe: Path, tmp_path: Path, verb: str
) -> None:
    message = refusal(verb, recipe, "--store", tmp_path / "store", "-s", "train.method=full")
    assert message.startswith(
        "recipe mine: train.method=full makes a whole model, and the registry holds adapters: "
        "use `lora"
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("verb", ["run", "promote"])
@pytest.mark.parametrize(
    "override",
    ["lora.dora=true", "lora.rank_pattern={q_proj: 2}", "lora.modules_to_save=[lm_head]"],
)
def test_an_adapter_that_is_no_version_is_refused_where_one_would_be_made(
    recipe: Path, tmp_path: Path, verb: str, override: str
) -> None:
    message = refusal(verb, recipe, "--store", tmp_path / "store", "-s", override)
    assert (
        message.startswith(f"recipe mine: {override.partition('=')[0]} trains ")
        and "the registry refuses" in message
    )
    assert "`loraforge prepare`, `train` and `evaluate`" in message
    assert not (tmp_path / "store").exists()


def test_a_whole_model_is_not_submitted(recipe: Path) -> None:
    from jobs.cluster.submit import submit_job

    with pytest.raises(UserError, match="train.method=full makes a whole model"):
        submit_job(
            load_recipe(recipe, ["train.method=full"]), "/store", "http://127.0.0.1:9", SILENT
        )


def test_wrong_options_are_code_2_too(recipe: Path) -> None:
    for arguments in (["fly"], ["run"], ["run", recipe, "--fast"]):
        done = loraforge(*arguments)
        assert done.returncode == 2 and "Traceback" not in done.stderr and "Error" in done.stderr


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """96 KiB: enough for a folder and the check before any work, not for the dataset."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_under_a_stage(ray_cluster: None, tiny_disk: Path) -> None:
    store = Store(tiny_disk / "store")
    store.check_writable()
    with pytest.raises(
        UserError,
        match=rf"{store.uri}/.*: the disk is full \(0 MiB free\); free space and give the same "
        rf"command again, or",
    ):
        prepare(load_recipe(RECIPE), store, SILENT)
    assert store.names("prepared") == [] and not list(Path(store.uri).rglob(".tmp-*"))
