"""The whole way on real components: prepare, train on two workers, evaluate, promote, serve, ask
over HTTP.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.console import ConsoleProgress
from jobs.graphs.demo import heldout_questions, run_demo
from jobs.graphs.run import RunResult, run_recipe
from pipelines.config.load import load_recipe
from pipelines.config.recipe import Recipe
from pipelines.core.progress import SILENT
from pipelines.registry.registry import Registry
from pipelines.sources.base_files import weight_files
from pipelines.sources.hashes import FileHashes
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from pipelines.train.stage import load_run
from tests.plain import plain_loss

RECIPE = Path(__file__).parents[2] / "recipes" / "pocket_lora_person_cpu.yaml"


@pytest.fixture(scope="module")
def hashes(tmp_path_factory: pytest.TempPathFactory) -> FileHashes:
    """A memory of hashes that is empty when the tests begin."""
    return FileHashes(tmp_path_factory.mktemp("cache") / "hashes")


@pytest.fixture(scope="module", params=["none", "nf4"])
def done(
    request: Any,
    ray_cluster: None,
    hashes: FileHashes,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Recipe, Store, RunResult]:
    options = [
        "train.max_steps=30",
        "train.save_every=15",
        "resources.serve_cpus=0.5",
        "serve.port=0",
    ]
    recipe = load_recipe(
        RECIPE, [*options, "serve.merged=[person]", f"model.quantization={request.param}"]
    )
    store = Store(tmp_path_factory.mktemp("store"))
    return recipe, store, run_recipe(Inputs(recipe, hashes), Runner(store, SILENT))


def test_adapter_learns_what_the_base_cannot(done: tuple[Recipe, Store, RunResult]) -> None:
    _, _, result = done
    base, best = (
        result.report.base,
        max(result.report.scores[1:], key=lambda score: score.exact_match),
    )
    assert base.exact_match <= 0.05 and best.exact_match >= 0.8
    assert best.heldout_loss < 0.1 * base.heldout_loss
    assert result.version is not None and result.decision.passed


def test_lineage_leads_back_to_the_sources(done: tuple[Recipe, Store, RunResult]) -> None:
    recipe, store, result = done
    version = Registry(store).get("person:production")
    assert result.version == version
    assert version.lineage["prepared"] == result.prepared.ref.digest
    assert version.lineage["checkpoint"] in {c.ref.digest for c in result.run.checkpoints}
    assert version.lineage["recipe"] == recipe.digest
    assert result.run.ref.parents["prepared"] == result.prepared.ref.digest


def test_a_copy_of_the_store_needs_nothing_of_the_original(
    done: tuple[Recipe, Store, RunResult], tmp_path: Path
) -> None:
    _, store, result = done
    shutil.copytree(store.uri, tmp_path / "copy")
    copy = Store(tmp_path / "copy")
    manifests = list(Path(copy.uri).rglob("manifest.json"))
    assert len(manifests) >= 5
    assert not [path for path in manifests if store.uri in path.read_text()]
    run = load_run(copy, copy.by_id("trained", result.run.ref.name))
    assert [c.step for c in run.checkpoints] == [c.step for c in result.run.checkpoints]
    folders = [copy.local_dir(checkpoint.ref) for checkpoint in run.checkpoints]
    registry = Registry(copy)
    folders.append(registry.adapter_dir(registry.get("person")))
    assert all(folder.is_relative_to(copy.uri) and folder.is_dir() for folder in folders)


def test_metrics_are_one_line_a_step_and_a_board(done: tuple[Recipe, Store, RunResult]) -> None:
    _, store, result = done
    folder = Path(store.uri, "runs", result.run.run_id[:12])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 31))
    assert lines[-1]["loss"] < 0.2 * lines[0]["loss"] and lines[-1]["memory_bytes"] > 1 << 20
    assert list((folder / "tensorboard").glob("events.*"))


def test_checkpoint_loads_with_plain_peft_to_the_same_loss(
    done: tuple[Recipe, Store, RunResult],
) -> None:
    """Plain transformers and PEFT, samples one by one: the loss that training reported for its
    held-out rows.
    """
    import peft
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM

    recipe, _, result = done
    if recipe.model.quantization != "none":
        pytest.skip("the plain model here is not quantized")
    best = result.run.best
    plain = AutoModelForCausalLM.from_pretrained(recipe.model.base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(plain, str(Path(best.ref.uri, "adapter"))).eval()
    files = sorted(Path(result.prepared.ref.uri).glob("heldout-*.parquet"))
    loss = plain_loss(model, (row for file in files for row in pq.read_table(file).to_pylist()))
    assert loss == pytest.approx(best.metrics["heldout_loss"], rel=1e-4)
    report = {score.candidate: score.heldout_loss for score in result.report.scores}
    assert loss == pytest.approx(report[best.ref.digest], rel=1e-4)


def test_a_rerun_finds_everything(done: tuple[Recipe, Store, RunResult]) -> None:
    recipe, store, result = done
    before = sorted(p for p in Path(store.uri).rglob("*") if p.is_file())
    again = run_recipe(
        Inputs(recipe), Runner(store, SILENT, lambda: pytest.fail("Ray was started"))
    )
    assert (
        again.prepared == result.prepared
        and again.run == result.run
        and again.version == result.version
    )
    assert again.report.ref == result.report.ref
    assert sorted(p for p in Path(store.uri).rglob("*") if p.is_file()) == before


def test_every_file_is_hashed_once_and_a_rerun_hashes_none(
    done: tuple[Recipe, Store, RunResult], hashes: FileHashes
) -> None:
    recipe, store, _ = done
    sources = [source.path for source in recipe.data.sources]
    weights = [str(path) for path in weight_files(recipe.model.base)]
    assert sorted(hashes.paths) == sorted(sources + weights)
    remembered = FileHashes(hashes.folder)
    run_recipe(Inputs(recipe, remembered), Runner(store, SILENT))
    assert remembered.paths == [] and remembered.num_bytes == 0
    verifying = FileHashes(hashes.folder, verify=True)
    run_recipe(Inputs(recipe, verifying), Runner(store, SILENT))
    assert sorted(verifying.paths) == sorted(hashes.paths)


def test_the_demo_asks_says_and_takes_its_endpoint_down(
    done: tuple[Recipe, Store, RunResult],
) -> None:
    """One recipe, already trained, a few questions: whether the bar was reached is what the demo
    returns.
    """
    from ray import serve

    recipe, store, result = done
    for bar, passed in ((0.5, True), (1.01, False)):
        out = io.StringIO()
        progress = ConsoleProgress(Console(file=out, width=160, highlight=False))
        runner = Runner(store, progress)
        code = run_demo({"mine.yaml": Inputs(recipe)}, runner, progress, 8, bar)
        assert code == (0 if passed else 1)
        output = out.getvalue()
        assert "24 questions over HTTP" in output and result.version and result.version.id in output
        assert ("below the bar of 101% on its own task: person " in output) is not passed
        assert serve.status().applications == {}, "nothing is left behind on a cluster that goes on"


@pytest.fixture(scope="module")
def client(done: tuple[Recipe, Store, RunResult]) -> Iterator[Any]:
    from openai import OpenAI

    from serve_app.deploy import run_endpoint, stop_endpoint

    recipe, store, _ = done
    endpoint = run_endpoint(Inputs(recipe), store, SILENT)
    yield OpenAI(base_url=f"{endpoint.url}/v1", api_key="none")
    stop_endpoint(recipe)


def test_endpoint_answers_as_the_report_says(
    done: tuple[Recipe, Store, RunResult], client: Any
) -> None:
    """Held-out prompts over HTTP: the adapter's and the merged model's answers are right, the
    base's are not.
    """
    _, store, result = done
    assert {"person", "person-merged"} < {model.id for model in client.models.list()}
    shares = {}
    questions = heldout_questions(store, "person", result.prepared, 16)
    for model in ("base", "person", "person-merged"):
        answers = [
            client.chat.completions.create(
                model=model, messages=q.messages, temperature=0, max_tokens=64
            )
            .choices[0]
            .message.content
            for q in questions
        ]
        shares[model] = sum(
            a == q.reference for a, q in zip(answers, questions, strict=True)
        ) / len(questions)
    assert shares["base"] <= 0.05 and shares["person"] >= 0.8 and shares["person-merged"] >= 0.8


def test_streamed_answer_is_the_whole_one(
    done: tuple[Recipe, Store, RunResult], client: Any
) -> None:
    _, store, result = done
    asked = {
        "messages": heldout_questions(store, "person", result.prepared, 1)[0].messages,
        "temperature": 0,
        "max_tokens": 64,
    }
    complete = client.chat.completions.create(model="person", **asked).choices[0].message.content
    pieces = [
        c.choices[0].delta.content
        for c in client.chat.completions.create(model="person", stream=True, **asked)
    ]
    assert len(pieces) > 5 and "".join(piece or "" for piece in pieces) == complete
