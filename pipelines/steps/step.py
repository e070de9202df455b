"""A stage of a recipe as a value: its inputs, its key, how it is built and read back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pipelines.core.progress import Progress
from pipelines.storage import Artifact, Store

T = TypeVar("T")


@dataclass(frozen=True)
class BuildContext:
    """What `Step.build` gets: the store, the artifact's key, and where to print notes.

    `outdated` is the artifact of the same key that the new one replaces, if there is one.
    """

    store: Store
    key: str
    progress: Progress
    outdated: Artifact | None = None


@dataclass(frozen=True, eq=False)
class Step(Generic[T]):
    """One stage. Its artifact is stored under (`kind`, key) and read back as a `T`.

    `inputs` are the steps before it; `key`, `build` and `summary` are called with plain values, so
    that a graph of steps can be inspected without running anything:

    - `key(*inputs)`: hex SHA-256 of all that decides the result. Compute it from the normalised
      values of the recipe and the keys of the inputs, never from the machine or from an outcome.
    - `check(*inputs)`: raise UserError for what can be seen to fail before Ray starts. It is called
      only when the artifact must be built.
    - `build(context, *inputs)`: make the artifact of `context.key`. Raises UserError.
    - `load(store, artifact)`: the artifact as a `T`. Raises UserError when the recipe's present
      limits refuse it.
    - `summary(T)`: the result in a few words, for the line that is printed.
    - `is_intact(store, artifact)`: whether effects outside the artifact still exist; if not, the
      artifact does not count as found.

    The manifest of a built artifact names each input under its kind in `parents`.
    """

    name: str
    noun: str
    kind: str
    inputs: tuple[Step[Any], ...]
    key: Callable[..., str]
    build: Callable[..., None]
    load: Callable[[Store, Artifact], T]
    summary: Callable[[T], str]
    needs_ray: bool = True
    check: Callable[..., None] = lambda *inputs: None
    is_intact: Callable[[Store, Artifact], bool] = lambda store, artifact: True


def fixed_step(step: Step[T], artifact: Artifact) -> Step[T]:
    """The step whose result is a given artifact, whatever the recipe says now."""

    def refuse(context: BuildContext) -> None:
        raise AssertionError(f"{artifact.ref.uri} exists and is never built")

    return Step(
        step.name,
        step.noun,
        step.kind,
        (),
        lambda: artifact.ref.key,
        refuse,
        step.load,
        step.summary,
        needs_ray=False,
    )
