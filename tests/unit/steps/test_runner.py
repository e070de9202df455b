"""Steps are found by key, built after their inputs, and rebuilt when an input was replaced."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipelines.core.artifacts import ArtifactRef
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.steps.runner import Runner
from pipelines.steps.step import BuildContext, Step, fixed_step
from pipelines.storage import Artifact, Store


@dataclasses.dataclass(frozen=True)
class Text:
    ref: ArtifactRef
    text: str


class Notes:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def bar(self, name: str, total: int | None = None) -> Any:
        return SILENT.bar(name, total)


def text_step(
    name: str, text: str, builds: list[str], *inputs: Step[Text], needs_ray: bool = False
) -> Step[Text]:
    """A step whose artifact is the texts of its inputs and its own."""

    def build(context: BuildContext, *nouns: Text) -> None:
        builds.append(name)
        parents = {step.kind: noun.ref.digest for step, noun in zip(inputs, nouns, strict=True)}
        with context.store.create_artifact(name, context.key, parents) as draft:
            (draft.path / "text").write_text("".join(noun.text for noun in nouns) + text)

    def load(store: Store, artifact: Artifact) -> Text:
        return Text(artifact.ref, (store.local_dir(artifact.ref) / "text").read_text())

    return Step(
        name,
        f"{name} text",
        name,
        inputs,
        lambda *nouns: digest_of([name, text, [noun.ref.key for noun in nouns]]),
        build,
        load,
        lambda noun: f"{len(noun.text)} characters",
        needs_ray,
    )


def graph(builds: list[str], last: str = "c") -> Step[Text]:
    first = text_step("first", "a", builds)
    second = text_step("second", "b", builds, first)
    return text_step("third", last, builds, first, second)


def test_each_step_is_built_once_and_after_its_inputs(store: Store) -> None:
    builds: list[str] = []
    notes = Notes()
    assert Runner(store, notes).run(graph(builds)).text == "aabc"
    assert builds == ["first", "second", "third"]
    assert [line.split(":")[0] for line in notes.lines] == builds
    assert all("built" in line for line in notes.lines)


def test_a_rerun_finds_every_step_and_builds_none(store: Store) -> None:
    Runner(store, SILENT).run(graph([]))
    builds: list[str] = []
    notes = Notes()
    assert Runner(store, notes).run(graph(builds)).text == "aabc"
    assert builds == [] and all("found" in line for line in notes.lines)


def test_only_steps_after_a_changed_literal_are_built_again(store: Store) -> None:
    Runner(store, SILENT).run(graph([]))
    builds: list[str] = []
    assert Runner(store, SILENT).run(graph(builds, last="d")).text == "aabd"
    assert builds == ["third"]


def test_the_printed_id_is_the_name_of_the_artifacts_folder(store: Store) -> None:
    notes = Notes()
    result = Runner(store, notes).run(text_step("first", "a", []))
    assert notes.lines == [f"first: {Path(result.ref.uri).name} built, 1 characters"]
    assert store.by_id("first", result.ref.name[:5]).ref == result.ref


def test_a_step_that_must_be_built_is_checked_before_ray_starts(store: Store) -> None:
    events: list[str] = []

    @contextmanager
    def cluster() -> Iterator[None]:
        events.append("cluster")
        yield

    def refuse(*_: Any) -> None:
        raise UserError("no row in it")

    step = text_step("first", "a", events, needs_ray=True)
    with pytest.raises(UserError, match="no row in it"):
        Runner(store, SILENT, cluster).run(dataclasses.replace(step, check=refuse))
    assert events == []
    step = dataclasses.replace(step, check=lambda: events.append("check"))
    for _ in range(2):  # the second run finds the artifact
        with Runner(store, SILENT, cluster) as runner:
            runner.run(step)
    assert events == ["check", "cluster", "first"]


def test_find_builds_nothing_and_require_names_the_command(store: Store) -> None:
    builds: list[str] = []
    third = graph(builds)
    runner = Runner(store, SILENT)
    assert runner.find(third) is None and builds == []
    with pytest.raises(UserError, match="no finished third text .*run `loraforge third` first"):
        runner.require(third)
    runner.run(third.inputs[0])
    assert runner.find(third) is None
    expected = runner.run(third)
    assert Runner(store, SILENT).find(third) == expected == Runner(store, SILENT).require(third)


def test_a_step_is_rebuilt_when_an_input_was_replaced_by_other_bytes(store: Store) -> None:
    """The key is the same, but what the result was made from is gone: it must not be found."""
    result = Runner(store, SILENT).run(graph([]))
    first = Runner(store, SILENT).run(text_step("first", "a", []))
    shutil.rmtree(first.ref.uri)
    with store.create_artifact("first", first.ref.key) as draft:
        (draft.path / "text").write_text("A")
    builds: list[str] = []
    notes = Notes()
    rebuilt = Runner(store, notes).run(graph(builds))
    assert builds == ["second", "third"] and rebuilt.text == "AAbc"
    assert rebuilt.ref.key == result.ref.key
    assert any("no longer fits its inputs or the store" in line for line in notes.lines)


def test_the_cluster_starts_once_and_only_for_a_step_that_needs_it(store: Store) -> None:
    starts: list[str] = []

    @contextmanager
    def cluster() -> Iterator[None]:
        starts.append("started")
        yield
        starts.append("stopped")

    first = text_step("first", "a", [])
    second = text_step("second", "b", [], first, needs_ray=True)
    third = text_step("third", "c", [], second, needs_ray=True)
    with Runner(store, SILENT, cluster) as runner:
        runner.run(first)
        assert starts == []
        runner.run(third)
        assert starts == ["started"]
    assert starts == ["started", "stopped"]
    with Runner(store, SILENT, cluster) as runner:
        runner.run(third)
    assert len(starts) == 2


def test_a_fixed_step_is_the_given_artifact_whatever_the_recipe_says(store: Store) -> None:
    given = Runner(store, SILENT).run(text_step("first", "x", []))
    artifact = store.read(given.ref.uri)
    assert artifact is not None
    first = fixed_step(text_step("first", "a", []), artifact)
    second = text_step("second", "b", [], first)
    assert Runner(store, SILENT).run(second).text == "xb"


def test_a_failed_build_leaves_nothing_and_can_be_repeated(store: Store) -> None:
    attempts: list[str] = []
    step = text_step("first", "a", attempts)

    def fail(context: BuildContext) -> None:
        with store.create_artifact("first", context.key) as draft:
            (draft.path / "text").write_text("half")
            raise UserError("the disk is full")

    broken = dataclasses.replace(step, build=fail)
    with pytest.raises(UserError, match="the disk is full"):
        Runner(store, SILENT).run(broken)
    assert store.list("first") == [] and Runner(store, SILENT).run(step).text == "a"


def test_a_failed_rebuild_restores_the_artifact_that_it_was_to_replace(store: Store) -> None:
    result = Runner(store, SILENT).run(graph([]))
    first = Runner(store, SILENT).run(text_step("first", "a", []))
    shutil.rmtree(first.ref.uri)
    with store.create_artifact("first", first.ref.key) as draft:
        (draft.path / "text").write_text("A")

    def fail(context: BuildContext, *nouns: Text) -> None:
        assert context.outdated is not None and store.find("third", context.key) is None
        raise UserError("the disk is full")

    third = dataclasses.replace(graph([]), build=fail)
    with pytest.raises(UserError, match="the disk is full"):
        Runner(store, SILENT).run(third)
    assert (Path(result.ref.uri) / "text").read_text() == "aabc"
    assert not list(Path(result.ref.uri).parent.glob(".outdated*"))


def test_an_artifact_whose_effects_are_gone_is_built_again(store: Store) -> None:
    builds: list[str] = []
    Runner(store, SILENT).run(text_step("first", "a", builds))
    step = text_step("first", "a", builds)
    broken = dataclasses.replace(step, is_intact=lambda store, artifact: len(builds) > 1)
    assert Runner(store, SILENT).find(broken) is None
    assert Runner(store, SILENT).run(broken).text == "a" and builds == ["first", "first"]
