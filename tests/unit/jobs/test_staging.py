"""What travels with a job: whole, loadable where it arrives, the same digest wherever it came from,
and not too much.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.cluster import staging
from jobs.cluster.staging import stage_files
from jobs.cluster.submit import auth_headers
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.errors import UserError
from pipelines.sources.source_files import benchmark_files, find_files


def make_inputs(folder: Path) -> Recipe:
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "one.json").write_text(json.dumps([{"instruction": "a", "output": "A"}]))
    (folder / "more" / "b.jsonl").write_text('{"instruction": "b", "output": "B"}\n')
    (folder / "more" / "a.jsonl").write_text('{"instruction": "c", "output": "C"}\n')
    (folder / "more" / "deep" / "a.jsonl").write_text('{"instruction": "d", "output": "D"}\n')
    (folder / "more" / "notes.txt").write_text("not a row")
    base = folder / "base-model"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"weights")
    sources = [folder / "one.json", folder / "more", folder / "more" / "**" / "a.jsonl"]
    return parse_recipe(
        {
            "name": "x",
            "model": {"base": str(base)},
            "data": {"sources": [{"path": str(s)} for s in sources]},
        }
    )


def rows(recipe: Recipe) -> list[tuple[int, bytes]]:
    """Each source's files in the order in which they are read."""
    return [(file.source, Path(file.path).read_bytes()) for file in find_files(recipe.data.sources)]


def test_what_arrives_reads_as_what_was_sent(tmp_path):
    sent = make_inputs(tmp_path / "here")
    arrived = tmp_path / "there"
    arrived.mkdir()
    stage_files(sent).write(arrived)
    received = load_recipe(arrived / "recipe.yaml")
    assert rows(received) == rows(sent) and len(rows(sent)) == 5
    assert (Path(received.model.base) / "model.safetensors").read_bytes() == b"weights"
    assert all(Path(s.path).is_relative_to(arrived) for s in received.data.sources)
    assert not (tmp_path / "there" / "data" / "1" / "notes.txt").exists()


def test_the_code_that_arrives_runs_on_its_own(tmp_path):
    stage_files(make_inputs(tmp_path / "here")).write(tmp_path)
    code = (
        "import jobs.cli, pipelines.config.load as r; "
        "print(r.__file__, r.load_recipe('recipe.yaml').name)"
    )
    command = [sys.executable, "-c", code]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    shown = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith(str(tmp_path)) and shown.endswith("x\n")


def test_code_travels_whole_and_without_caches(tmp_path):
    targets = stage_files(make_inputs(tmp_path / "here")).files
    assert {
        "jobs/cli.py",
        "jobs/cluster/on_cluster.sh",
        "pipelines/config/recipe.py",
        "serve_app/__init__.py",
    } <= set(targets)
    assert not [target for target in targets if "__pycache__" in target]


def test_the_digest_is_of_the_content_not_of_the_place(tmp_path):
    first, second = make_inputs(tmp_path / "here"), make_inputs(tmp_path / "elsewhere")
    assert stage_files(first).digest == stage_files(second).digest
    changed = tmp_path / "elsewhere" / "one.json"
    changed.write_text(changed.read_text().replace("A", "B"))
    assert stage_files(first).digest != stage_files(second).digest


def test_benchmark_files_travel_and_count(tmp_path):
    (tmp_path / "bench.jsonl").write_text('{"instruction": "q", "output": "A"}\n')
    recipe = make_inputs(tmp_path / "here")
    source = recipe.data.sources[0].path
    sent = parse_recipe(
        recipe.model_dump()
        | {
            "data": {
                **recipe.data.model_dump(),
                "benchmarks": [source, str(tmp_path / "bench.jsonl")],
            }
        }
    )
    arrived = tmp_path / "there"
    arrived.mkdir()
    staged = stage_files(sent)
    staged.write(arrived)
    received = load_recipe(arrived / "recipe.yaml")
    rows = [Path(file.path).read_bytes() for file in benchmark_files(received.data.benchmarks)]
    assert rows == [Path(source).read_bytes(), (tmp_path / "bench.jsonl").read_bytes()]
    assert all(Path(path).is_relative_to(arrived) for path in received.data.benchmarks)
    before = staged.digest
    assert before != stage_files(recipe).digest
    (tmp_path / "bench.jsonl").write_text('{"instruction": "r", "output": "A"}\n')
    assert before != stage_files(sent).digest
    (tmp_path / "bench.jsonl").unlink()
    with pytest.raises(UserError, match="data.benchmarks.1=.*bench.jsonl: no such file"):
        stage_files(sent)


def test_the_template_file_and_the_bases_named_templates_travel_and_count(tmp_path):
    recipe = make_inputs(tmp_path / "here")
    named = Path(recipe.model.base, "additional_chat_templates", "tool_use.jinja")
    named.parent.mkdir()
    named.write_text("{{ tools }}")
    template = tmp_path / "own.jinja"
    template.write_text("{{ messages }}")

    def choosing(name: str) -> Recipe:
        return recipe.model_copy(
            update={"data": recipe.data.model_copy(update={"chat_template": name})}
        )

    staged = stage_files(choosing(str(template)))
    arrived = tmp_path / "there"
    arrived.mkdir()
    staged.write(arrived)
    received = load_recipe(arrived / "recipe.yaml")
    assert received.data.chat_template is not None
    assert Path(received.data.chat_template).read_text() == "{{ messages }}"
    assert Path(received.data.chat_template).is_relative_to(arrived)
    assert (arrived / "base" / "additional_chat_templates" / "tool_use.jinja").is_file()
    before = staged.digest
    template.write_text("{{ messages[0] }}")
    assert stage_files(choosing(str(template))).digest != before
    template.unlink()
    with pytest.raises(UserError, match=r"data.chat_template=.*own.jinja: no such file.*chatml"):
        stage_files(choosing(str(template)))
    assert stage_files(choosing("chatml")).recipe.data.chat_template == "chatml"


def test_shared_folders_and_hub_ids_stay_where_they_are(tmp_path):
    recipe = make_inputs(tmp_path / "here")
    staged = stage_files(recipe, shared=[tmp_path])
    assert staged.recipe == recipe and not [
        t for t in staged.files if t.startswith(("data/", "base/"))
    ]
    hub = parse_recipe({**recipe.model_dump(), "model": {"base": "org/base"}})
    assert stage_files(hub).recipe.model.base == "org/base"


def test_too_much_is_refused_with_the_five_largest_named(tmp_path, monkeypatch):
    recipe = make_inputs(tmp_path / "here")
    for index in range(6):
        (tmp_path / "here" / "base-model" / f"part{index}.bin").write_bytes(
            bytes(2_000_000 + index)
        )
    monkeypatch.setattr(staging, "MAX_BYTES", 5_000_000)
    with pytest.raises(UserError) as caught:
        stage_files(recipe)
    text = str(caught.value)
    assert (
        all(f"part{index}.bin (2.0 MB)" in text for index in range(1, 6))
        and "part0.bin" not in text
    )
    assert "--shared" in text and "\n" not in text


def test_the_token_is_the_one_that_rays_tools_would_send(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_headers() == {}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("kept\n")
    assert auth_headers() == {"Authorization": "Bearer kept"}
    (tmp_path / "given").write_text("given\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "given"))
    assert auth_headers() == {"Authorization": "Bearer given"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "named")
    assert auth_headers() == {"Authorization": "Bearer named"}
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert auth_headers() == {}
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH=.*gone: cannot read"):
        auth_headers()
