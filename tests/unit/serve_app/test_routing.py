"""From a model name to what answers: names, aliases that move, and names that are not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import ModelVersion
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.api.protocol import ApiError
from serve_app.engines.protocol import AdapterRef
from serve_app.routing.names import FRESH_S, Route, Router, ServedModels
from serve_app.routing.offer import served_models


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def version(registry: Registry, name: str) -> ModelVersion:
    return registry.versions(name)[0]


def router(
    registry: Registry, fingerprint: str, clock: Clock | None = None, **served: object
) -> Router:
    return Router(registry, ServedModels("pocket", fingerprint, **served), clock or Clock())  # type: ignore[arg-type]


def test_each_form_of_a_name(registry: Registry, fingerprint: str) -> None:
    ada, cyn = version(registry, "ada"), version(registry, "cyn")
    found = router(registry, fingerprint, merged={"ada": ada.id})
    answered = Route(ada.id, AdapterRef(ada.digest, ada.id))
    assert [found.resolve(name) for name in ("ada", "ada:production", ada.id)] == [answered] * 3
    assert found.resolve("base") == found.resolve("pocket") == Route("pocket")
    assert found.resolve("ada-merged") == Route("ada-merged", merged="ada")
    assert found.resolve(cyn.id).adapter == AdapterRef(
        cyn.digest, cyn.id
    )  # no alias, but its id is enough
    bob = version(registry, "bob")
    assert found.known() == {"pocket": "pocket", "ada": ada.id, "bob": bob.id, "ada-merged": ada.id}


@pytest.mark.parametrize(
    "name",
    ["nobody", "cyn", "ada:staging", "ada@000000000000", "ada@", "ada@../../x", "../ada", "ada/../ada", "", "a" * 200,
     "bob-merged", "ada:Production", "ada@ABCDEF012345", "pocket:production", "\x00", "ada@" + "0" * 64],
)  # fmt: skip
def test_a_name_that_is_not_there_is_404_with_those_that_are(
    registry: Registry, fingerprint: str, name: str
) -> None:
    with pytest.raises(ApiError, match="there are pocket, ada, bob") as caught:
        router(registry, fingerprint).resolve(name)
    assert (caught.value.status, caught.value.code, caught.value.param) == (
        404,
        "model_not_found",
        "model",
    )


def test_only_the_names_in_the_recipe_are_offered(registry: Registry, fingerprint: str) -> None:
    found = router(registry, fingerprint, names=("ada",))
    assert list(found.known()) == ["pocket", "ada"]
    for name in ("bob", version(registry, "bob").id):
        with pytest.raises(ApiError):
            found.resolve(name)


def test_an_adapter_of_another_base_is_not_offered(registry: Registry) -> None:
    found = router(registry, "another fingerprint")
    assert list(found.known()) == ["pocket"]
    with pytest.raises(ApiError):
        found.resolve(version(registry, "ada").id)


def test_a_promotion_is_seen_after_a_second_and_a_rollback_too(
    registry: Registry, adapter_folders: dict[str, Path], pocket_base: str, fingerprint: str
) -> None:
    clock = Clock()
    found = router(registry, fingerprint, clock)
    first = version(registry, "ada")
    facts = {"base": pocket_base, "base_fingerprint": fingerprint, "lineage": {}, "metrics": {}}
    second = registry.register("ada", adapter_folders["bob"], **facts)  # type: ignore[arg-type]
    seen = [found.resolve("ada").answers_as]
    registry.promote("ada", "production", second.id, 1)
    for step in (0.9 * FRESH_S, 0.2 * FRESH_S):
        clock.now += step
        seen.append(found.resolve("ada").answers_as)
    registry.rollback("ada", "production")
    clock.now += 1.1 * FRESH_S
    seen.append(found.resolve("ada").answers_as)
    assert seen == [first.id, first.id, second.id, first.id]


def test_a_flood_of_unknown_names_does_not_read_the_store_each_time(
    registry: Registry, fingerprint: str
) -> None:
    reads = 0

    class Counting(Registry):
        def models(self) -> list[str]:
            nonlocal reads
            reads += 1
            return super().models()

    found = router(Counting(registry._store), fingerprint)
    for number in range(50):
        with pytest.raises(ApiError):
            found.resolve(f"no/such/{number}")
    assert reads == 1


def test_served_models_are_plain_data(fingerprint: str) -> None:
    """They travel to the ingress by pickle."""
    served = ServedModels("pocket", fingerprint, ("ada",), "production", {"ada": "ada@0"})
    assert ServedModels(**dataclasses.asdict(served)) == served


def test_an_empty_registry_serves_the_base(store: Store, fingerprint: str) -> None:
    assert list(router(Registry(store), fingerprint).known()) == ["pocket"]


def test_an_engine_that_is_not_here_is_refused_before_anything_starts(
    pocket_base: str, store: Store
) -> None:
    data = {
        "name": "x",
        "model": {"base": pocket_base},
        "data": {"sources": ["a.json"]},
        "serve": {"engine": "vllm"},
    }
    with pytest.raises(
        UserError, match="this version serves with transformers.*set serve.engine=transformers"
    ):
        served_models(parse_recipe(data), store)
