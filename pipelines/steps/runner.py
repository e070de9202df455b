"""Runs graphs of steps: finds each artifact by its key, or builds it after the steps it needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pipelines.core.errors import UserError
from pipelines.core.progress import Progress
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store, remove

T = TypeVar("T")


class Runner:
    """Runs steps in one store. Use it as a context manager: it stops the cluster that it started.

    `cluster` returns a context in which Ray is initialised; it is entered when the first step that
    needs Ray must be built, so a rerun of finished work starts nothing. `seconds` maps the name of
    each step that ran to its wall time.
    """

    def __init__(
        self,
        store: Store,
        progress: Progress,
        cluster: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.store = store
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._cluster = cluster
        self._stack = ExitStack()
        self._has_cluster = False
        self._results: dict[Step[Any], Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def run(self, step: Step[T]) -> T:
        """The step's result: found, or built after its inputs; one line is printed either way."""
        if step in self._results:
            return self._results[step]
        inputs = [self.run(each) for each in step.inputs]
        started = time.monotonic()
        key = step.key(*inputs)
        artifact = self._find(step, key, inputs)
        verdict = "found" if artifact else "built"
        if artifact is None:
            self._build(step, key, inputs)
            artifact = self._find(step, key, inputs)
            if artifact is None:
                raise UserError(f"{self.store.folder(step.kind, key)}: the artifact is gone again")
        result = step.load(self.store, artifact)
        self.seconds[step.name] = time.monotonic() - started
        self.progress.note(f"{step.name}: {artifact.ref.name} {verdict}, {step.summary(result)}")
        self._results[step] = result
        return result

    def find(self, step: Step[T]) -> T | None:
        """The step's finished result, or None when it or one of its inputs must be built first."""
        if step in self._results:
            return self._results[step]
        inputs = [self.find(each) for each in step.inputs]
        if any(each is None for each in inputs):
            return None
        artifact = self._find(step, step.key(*inputs), inputs)
        return step.load(self.store, artifact) if artifact else None

    def require(self, step: Step[T]) -> T:
        """The step's finished result. Raises UserError naming the command that builds it."""
        if self.find(step) is None:
            raise UserError(
                f"{self.store.uri}: no finished {step.noun} of this recipe; run "
                f"`loraforge {step.name}` first, or `loraforge run`"
            )
        return self.run(step)

    def give(self, step: Step[T], result: T) -> None:
        """Use `result` for a step, which is then neither found nor built."""
        self._results[step] = result

    def start_cluster(self) -> None:
        """Enter the cluster's context unless it has been entered."""
        if not self._has_cluster:
            self._has_cluster = True
            self._stack.enter_context(self._cluster())

    def _find(self, step: Step[Any], key: str, inputs: list[Any]) -> Artifact | None:
        """The finished artifact, unless it was built from another build of one of its inputs."""
        artifact = self.store.find(step.kind, key)
        if artifact is None or not step.is_intact(self.store, artifact):
            return None
        digests = {
            each.kind: noun.ref.digest for each, noun in zip(step.inputs, inputs, strict=True)
        }
        return artifact if digests.items() <= artifact.ref.parents.items() else None

    def _build(self, step: Step[Any], key: str, inputs: list[Any]) -> None:
        outdated = self.store.find(step.kind, key)
        if outdated and not self.store.is_local:
            raise UserError(
                f"{outdated.ref.uri}: does not match the store any more, because one of its inputs "
                "was built again; delete that folder and give the same command again"
            )
        step.check(*inputs)
        if step.needs_ray:
            self.start_cluster()
        with self._moved_aside(step, outdated):
            step.build(BuildContext(self.store, key, self.progress, outdated), *inputs)

    @contextmanager
    def _moved_aside(self, step: Step[Any], outdated: Artifact | None) -> Iterator[None]:
        """Hide the artifact to replace; delete it after the build, or restore it on errors."""
        if outdated is None:
            yield
            return
        self.progress.note(
            f"{step.name}: {outdated.ref.name} no longer fits its inputs or the store, "
            "rebuilding it"
        )
        folder = Path(outdated.ref.uri)
        hidden = folder.with_name(f".outdated-{folder.name}")
        remove(hidden)
        folder.rename(hidden)
        try:
            yield
        finally:
            if folder.exists():
                remove(hidden)
            else:
                hidden.rename(folder)
