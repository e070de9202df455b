"""The demo: recipes on one base through every stage, then questions to the live endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from jobs.cluster.endpoint import running_endpoint
from jobs.console import ConsoleProgress
from jobs.graphs.run import RunResult, run_recipe
from jobs.options import REJECTED
from pipelines.core.artifacts import Endpoint, PreparedDataset
from pipelines.core.errors import UserError
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store

_CONCURRENCY = 64


@dataclass(frozen=True)
class Question:
    """One held-out prompt of a task and the answer that counts as right."""

    task: str
    messages: list[Any]
    reference: str


def run_demo(
    recipes: Mapping[str, Inputs],
    runner: Runner,
    progress: ConsoleProgress,
    num_questions: int,
    bar: float,
) -> int:
    """Run all recipes, serve all adapters, ask them, print the answers, and stop the endpoint.

    `recipes` maps a path to the recipe's inputs; all must name the same base. Returns the exit
    code: 0 when every adapter, and the merged copy of the first, answers at least the share `bar`
    of its own task's questions right, else 1; 3 when the gate rejects a candidate. Raises UserError
    when the bases differ.
    """
    if len({inputs.recipe.model.base for inputs in recipes.values()}) != 1:
        raise UserError(
            "demo: the recipes must name the same model.base, because one base serves all adapters"
        )
    store = runner.store
    seconds: dict[str, dict[str, float]] = {}
    results: dict[str, RunResult] = {}
    for path, inputs in recipes.items():
        recipe = inputs.recipe
        progress.console.rule(f"[bold]{recipe.name}[/bold] ({path})", align="left")
        result = results[recipe.registry.model] = run_recipe(inputs, runner)
        seconds[recipe.name] = result.seconds
        if not result.version:
            progress.note(f"{path}: the gate rejected the adapter: {result.decision.reason}")
            return REJECTED
    names = list(results)
    path, first = next(iter(recipes.items()))
    progress.console.rule("[bold]one base, all adapters[/bold]", align="left")
    runner.start_cluster()
    started = time.monotonic()
    config = first.recipe.serve.model_copy(update={"port": 0, "models": names, "merged": names[:1]})
    served = Inputs(first.recipe.model_copy(update={"serve": config}), first.hashes)
    questions = [
        question
        for name, result in results.items()
        for question in heldout_questions(store, name, result.prepared, num_questions)
    ]
    with running_endpoint(served, store, progress) as endpoint:
        serve_s = time.monotonic() - started
        candidates = [endpoint.models[0], *names, f"{names[0]}-merged"]
        started = time.monotonic()
        answers = asyncio.run(ask_all(endpoint, candidates, questions))
        ask_s = time.monotonic() - started
    progress.console.print(answers_table(candidates, questions, answers))
    progress.console.print(scores_table(results, candidates, questions, answers))
    seconds["all adapters"] = {"serve": serve_s, "questions": ask_s}
    progress.console.print(seconds_table(seconds))
    count = len(questions) * len(candidates)
    progress.note(
        f"{count} questions over HTTP in {ask_s:.1f} s ({count / ask_s:.0f}/s); "
        f"artifacts: {store.uri}"
    )
    for result in results.values():
        version = result.version.id if result.version else "-"
        progress.note(f"  {version}: report {result.report.ref.uri}/report.html")
    command = os.path.relpath(sys.argv[0]) if os.path.exists(sys.argv[0]) else "loraforge"
    progress.note("serve them: " + shlex.join([command, "serve", path, "--store", store.uri]))
    shares = {name: right_share(answers[candidates.index(name)], questions, name) for name in names}
    shares[candidates[-1]] = right_share(answers[-1], questions, names[0])
    below = [f"{name} {share:.1%}" for name, share in shares.items() if share < bar]
    if below:
        progress.note(f"below the bar of {bar:.0%} on its own task: {', '.join(below)}")
    return 1 if below else 0


def right_share(answers: Sequence[str], questions: Sequence[Question], task: str) -> float:
    """The share of a task's questions that one model answered right."""
    picked = [
        a == q.reference.strip() for a, q in zip(answers, questions, strict=True) if q.task == task
    ]
    return sum(picked) / len(picked)


def heldout_questions(
    store: Store, task: str, prepared: PreparedDataset, count: int
) -> list[Question]:
    """The first `count` held-out prompts of a prepared dataset, as chat messages."""
    from pipelines.packed.reader import read_heldout_samples

    folder = store.local_dir(prepared.ref)
    rows = read_heldout_samples(folder, ("messages", "reference"))[:count]
    return [Question(task, json.loads(row["messages"]), row["reference"]) for row in rows]


async def ask_all(
    endpoint: Endpoint, models: Sequence[str], questions: Sequence[Question]
) -> list[list[str]]:
    """Every model's greedy answer to every question, `[model][question]`, by the OpenAI client."""
    from openai import AsyncOpenAI

    gate = asyncio.Semaphore(_CONCURRENCY)
    async with AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=3) as client:

        async def ask(model: str, question: Question) -> str:
            async with gate:
                reply = await client.chat.completions.create(
                    model=model,
                    messages=question.messages,
                    temperature=0,
                    max_tokens=96,
                )
                return (reply.choices[0].message.content or "").strip()

        # Question by question, so that one batch of the engine mixes the adapters.
        flat = await asyncio.gather(
            *(ask(model, question) for question in questions for model in models)
        )
    return [list(flat[i :: len(models)]) for i in range(len(models))]


def answers_table(
    models: Sequence[str], questions: Sequence[Question], answers: Sequence[Sequence[str]]
) -> Table:
    """One question of each task with every model's answer; green is right."""
    table = Table(title="answers of the live endpoint", title_justify="left")
    for column in ("question", "model", "answer"):
        table.add_column(column, overflow="fold", ratio={"question": 3, "answer": 5}.get(column))
    for task in dict.fromkeys(question.task for question in questions):
        index = next(i for i, question in enumerate(questions) if question.task == task)
        asked = Text(questions[index].messages[-1]["content"], style="cyan")
        for model, row in zip(models, answers, strict=True):
            right = row[index] == questions[index].reference.strip()
            answer = Text(row[index].replace("\n", " / ")[:160], style="green" if right else "dim")
            table.add_row(asked, model, answer, end_section=model == models[-1])
            asked = Text("")
    return table


def scores_table(
    results: Mapping[str, RunResult],
    models: Sequence[str],
    questions: Sequence[Question],
    answers: Sequence[Sequence[str]],
) -> Table:
    """Exact match of every model on every task over HTTP, and held-out losses."""
    table = Table(title="exact match on held-out rows, through the endpoint", title_justify="left")
    for column in ("task", "rows", "loss base", "loss adapter", *models):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, result in results.items():
        count = sum(question.task == task for question in questions)
        scores = {score.candidate: score.heldout_loss for score in result.report.scores}
        cells = []
        for model, row in zip(models, answers, strict=True):
            share = right_share(row, questions, task)
            cells.append(Text(f"{share:.1%}", style="bold green" if model.startswith(task) else ""))
        losses = (f"{scores['base']:.4f}", f"{scores[result.decision.candidate]:.4f}")
        table.add_row(task, str(count), *losses, *cells)
    return table


def seconds_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
    """Seconds of each stage, one row a recipe."""
    stages = list(dict.fromkeys(stage for row in seconds.values() for stage in row))
    table = Table(title="seconds", title_justify="left")
    for column in ("", *stages):
        table.add_column(column, justify="right" if column else "left")
    for name, row in seconds.items():
        table.add_row(name, *(f"{row[stage]:.1f}" if stage in row else "" for stage in stages))
    return table
