"""The recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.config.adapter_limits import unregistrable_keys, unservable_keys, vllm_max_rank
from pipelines.config.checks import contradictions
from pipelines.config.errors import describe_errors
from pipelines.config.schema import (
    DataConfig,
    EvalConfig,
    GateConfig,
    LoraConfig,
    ModelConfig,
    RegistryConfig,
    ResourcesConfig,
    Section,
    ServeConfig,
    TrainConfig,
)
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError


class Recipe(Section):
    """One run from dataset to endpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    model: ModelConfig
    lora: LoraConfig = LoraConfig()
    data: DataConfig
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()
    gate: GateConfig = GateConfig()
    registry: RegistryConfig
    serve: ServeConfig = ServeConfig()
    resources: ResourcesConfig = ResourcesConfig()

    @model_validator(mode="before")
    @classmethod
    def _registry_from_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("name"), str):
            registry = data.get("registry") or {}
            if isinstance(registry, dict):
                data = {**data, "registry": {"model": data["name"], **registry}}
        return data

    @model_validator(mode="after")
    def _cross_checks(self) -> Recipe:
        mistakes = list(contradictions(self.model, self.lora, self.train))
        if self.serve.engine and self.train.method == "lora":
            mistakes += [
                f"{line}, or serve.engine" for line in unservable_keys(self.lora, self.serve.engine)
            ]
        if mistakes:
            raise ValueError("; ".join(mistakes))
        return self

    def check_registers(self) -> None:
        """Raise UserError when what this recipe trains cannot become a model version."""
        if self.train.method == "full":
            raise UserError(
                f"recipe {self.name}: train.method=full makes a whole model, and the registry holds adapters: use `loraforge "
                "prepare`, `train` and `evaluate`, then serve a checkpoint's model/ folder with -s model.base=FOLDER"
            )
        refused = unregistrable_keys(self.lora)
        if refused:
            raise UserError(
                f"recipe {self.name}: {'; '.join(refused)}, or use `loraforge prepare`, `train` and `evaluate`, which register "
                "nothing"
            )

    def serving_notes(self) -> list[str]:
        """What to know about serving what this recipe trains, a line each; nothing of it stands in the way of training."""
        if self.train.method == "full":
            return [
                "train.method=full makes no adapter: a checkpoint's model/ folder is a base, for -s model.base=FOLDER"
            ]
        if self.serve.engine == "vllm":
            return [
                f"serve.engine=vllm: start vLLM with --max-lora-rank {vllm_max_rank(self.lora)}"
            ]
        return [] if self.serve.engine else unservable_keys(self.lora, None)

    @property
    def digest(self) -> str:
        """Hex sha256 of the resolved recipe, every default included."""
        return digest_of(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_recipe(data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check a recipe that is already plain data. Raises UserError as `load_recipe` does."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: " + describe_errors(error, Recipe)) from error


def with_paths(recipe: Recipe, move: Callable[[str], str]) -> Recipe:
    """The same recipe with `move` applied to the base and to every path of a source or benchmark."""
    data = recipe.model_dump()
    data["model"]["base"] = move(data["model"]["base"])
    for source in data["data"]["sources"]:
        source["path"] = move(source["path"])
    data["data"]["benchmarks"] = [move(path) for path in data["data"]["benchmarks"]]
    return Recipe.model_validate(data)
