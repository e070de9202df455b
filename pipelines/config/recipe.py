"""The recipe: all sections of one run, checked across sections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.config.adapter_limits import unregistrable_keys, unservable_keys, vllm_max_rank
from pipelines.config.contradictions import contradictions
from pipelines.config.errors import Contradictions, Locate, RecipeError, problems_of
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
from pipelines.core.identifiers import MODEL_NAME


class Recipe(Section):
    """One run, from a dataset to an endpoint. Required: `name`, `model.base`, `data.sources`."""

    name: str = Field(
        pattern=f"^{MODEL_NAME}$",
        description="Name of the recipe; it names the endpoint, and the adapter unless "
        "registry.model does.",
    )
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
    def _check_across_sections(self) -> Recipe:
        lines = list(contradictions(self.model, self.lora, self.train, self.data))
        if self.serve.engine and self.train.method == "lora":
            unservable = unservable_keys(self.lora, self.serve.engine)
            lines += [f"{line}, or serve.engine" for line in unservable]
        if lines:
            raise Contradictions(lines)
        return self

    def check_registers(self) -> None:
        """Raise UserError if the result of this recipe cannot become a model version."""
        if self.train.method == "full":
            raise UserError(
                f"recipe {self.name}: train.method=full makes a whole model, and the registry "
                "holds adapters: use "
                "`loraforge prepare`, `train` and `evaluate`, then serve a checkpoint's model/ "
                "folder with "
                "-s model.base=FOLDER"
            )
        reasons = unregistrable_keys(self.lora)
        if reasons:
            raise UserError(
                f"recipe {self.name}: {'; '.join(reasons)}, or use `loraforge prepare`, `train` "
                "and `evaluate`, which "
                "register nothing"
            )

    def serving_notes(self) -> list[str]:
        """Notes about serving the result, one line each; none of them blocks training."""
        if self.train.method == "full":
            note = (
                "train.method=full makes no adapter: a checkpoint's model/ folder is a base, for "
            )
            return [f"{note}-s model.base=FOLDER"]
        if self.serve.engine == "vllm":
            rank = vllm_max_rank(self.lora)
            return [f"serve.engine=vllm: start vLLM with --max-lora-rank {rank}"]
        return [] if self.serve.engine else unservable_keys(self.lora, None)

    @property
    def digest(self) -> str:
        """Hex sha256 of the resolved recipe, every default included."""
        return digest_of(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        """The resolved recipe, every default included; it is a recipe itself."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def parse_recipe(
    data: Mapping[str, Any], origin: str = "recipe", locate: Locate = lambda path: None
) -> Recipe:
    """Check a recipe that is plain data already. Raises RecipeError with every problem.

    `origin` begins the error's text; `locate` gives the position of a key in the recipe's file.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(origin, problems_of(error, Recipe, locate)) from error


def with_paths(recipe: Recipe, move: Callable[[str], str]) -> Recipe:
    """The recipe with `move` applied to the base and to the paths of sources, benchmarks and the
    chat template.
    """
    data = recipe.model_dump()
    data["model"]["base"] = move(data["model"]["base"])
    for source in data["data"]["sources"]:
        source["path"] = move(source["path"])
    data["data"]["benchmarks"] = [move(path) for path in data["data"]["benchmarks"]]
    if data["data"]["chat_template"]:
        data["data"]["chat_template"] = move(data["data"]["chat_template"])
    return Recipe.model_validate(data)
