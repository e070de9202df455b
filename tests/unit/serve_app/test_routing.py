"""From a model name to its route: names, moving aliases, and names that do not exist."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.recipe import parse_recipe
from pipelines.core.artifacts import ModelVersion
from pipelines.core.errors import UserError
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.engines.protocol import AdapterRef
from serve_app.routing.names import FRESH_S, Route, Router, ServedModels, UnknownModelError
from serve_app.routing.offer import served_models


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def version(registry: Registry, name: str) -> ModelVersion:
    return registry.versions(name)[0]


def router(
    registry: Registry, fingerprint: str, clock: Clock | None = None, **served: Any
) -> Router:
    return Router(registry, ServedModels("pocket", fingerprint, **served), clock or Clock())


def test_each_form_of_a_name_has_its_route(registry: Registry, fingerprint: str) -> None:
    ada, bob, cyn = (version(registry, name) for name in ("ada", "bob", "cyn"))
    routes = router(registry, fingerprint, merged={"ada": ada.id})
    route = Route(ada.id, AdapterRef(ada.digest, ada.id))
    assert [routes.resolve(name) for name in ("ada", "ada:production", ada.id)] == [route] * 3
    assert routes.resolve("base") == routes.resolve("pocket") == Route("pocket")
    assert routes.resolve("ada-merged") == Route("ada-merged", merged="ada")
    # cyn has no alias, but a version id needs none.
    assert routes.resolve(cyn.id).adapter == AdapterRef(cyn.digest, cyn.id)
    names = {"pocket": "pocket", "ada": ada.id, "bob": bob.id, "ada-merged": ada.id}
    assert routes.names() == names


UNKNOWN = [
    *("nobody", "cyn", "ada:staging", "ada:Production", "pocket:production", "bob-merged", ""),
    *("ada@", "ada@000000000000", "ada@ABCDEF012345", "ada@" + "0" * 64, "ada@../../x"),
    *("../ada", "ada/../ada", "\x00", "a" * 200),
]


@pytest.mark.parametrize("name", UNKNOWN)
def test_an_unknown_name_is_refused_with_the_names_that_exist(
    registry: Registry, fingerprint: str, name: str
) -> None:
    with pytest.raises(UnknownModelError, match="there are pocket, ada, bob"):
        router(registry, fingerprint).resolve(name)


def test_only_the_names_in_the_recipe_are_offered(registry: Registry, fingerprint: str) -> None:
    routes = router(registry, fingerprint, names=("ada",))
    assert list(routes.names()) == ["pocket", "ada"]
    for name in ("bob", version(registry, "bob").id):
        with pytest.raises(UnknownModelError):
            routes.resolve(name)


def test_an_adapter_of_another_base_is_not_offered(registry: Registry) -> None:
    routes = router(registry, "another fingerprint")
    assert list(routes.names()) == ["pocket"]
    with pytest.raises(UnknownModelError):
        routes.resolve(version(registry, "ada").id)


def test_a_promotion_and_a_rollback_take_effect_after_a_second(
    registry: Registry, adapter_folders: dict[str, Path], pocket_base: str, fingerprint: str
) -> None:
    clock = Clock()
    routes = router(registry, fingerprint, clock)
    first = version(registry, "ada")
    fields: Any = {"base_fingerprint": fingerprint, "lineage": {}, "metrics": {}}
    second = registry.register("ada", adapter_folders["bob"], base=pocket_base, **fields)
    ids = [routes.resolve("ada").answers_as]
    registry.promote("ada", "production", second.id, 1)
    for step in (0.9 * FRESH_S, 0.2 * FRESH_S):
        clock.now += step
        ids.append(routes.resolve("ada").answers_as)
    registry.rollback("ada", "production")
    clock.now += 1.1 * FRESH_S
    ids.append(routes.resolve("ada").answers_as)
    assert ids == [first.id, first.id, second.id, first.id]


def test_a_flood_of_unknown_names_does_not_read_the_store_each_time(
    registry: Registry, store: Store, fingerprint: str
) -> None:
    reads = 0

    class Counting(Registry):
        def models(self) -> list[str]:
            nonlocal reads
            reads += 1
            return super().models()

    routes = router(Counting(store), fingerprint)
    for number in range(50):
        with pytest.raises(UnknownModelError):
            routes.resolve(f"no/such/{number}")
    assert reads == 1


@pytest.mark.parametrize("damaged", ["aliases/ada/production/00000001.json", "models/ADA"])
def test_a_damaged_file_of_one_model_hides_no_other_model(
    registry: Registry, store: Store, fingerprint: str, damaged: str
) -> None:
    ada, bob = version(registry, "ada"), version(registry, "bob")
    path = Path(store.uri, damaged.replace("ADA", f"{ada.digest[:12]}/manifest.json"))
    path.write_text("{")
    for names in ((), ("ada", "bob")):
        routes = router(registry, fingerprint, names=names)
        assert list(routes.names()) == ["pocket", "bob"]
        assert routes.resolve("bob").answers_as == bob.id
        with pytest.raises(UnknownModelError, match="there are pocket, bob"):
            routes.resolve("ada")


def test_served_models_are_plain_data(fingerprint: str) -> None:
    """Serve sends them to the ingress by pickle."""
    served = ServedModels("pocket", fingerprint, ("ada",), "production", {"ada": "ada@0"})
    assert ServedModels(**dataclasses.asdict(served)) == served


def test_an_empty_registry_serves_the_base(store: Store, fingerprint: str) -> None:
    assert list(router(Registry(store), fingerprint).names()) == ["pocket"]


def test_an_unsupported_engine_is_refused_before_anything_starts(
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
