"""A recipe: everything a run depends on, as one YAML file of checked sections. Unknown keys are errors.

A path inside a recipe file is relative to that file's folder; a path given with `-s` is relative to the working
directory. `Recipe.digest` covers the whole resolved recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipelines.contracts import UserError, digest_of
from pipelines.mistakes import explain, unregistrable, unservable, vllm_max_rank
from pipelines.sections import (
    AuditConfig,
    DataConfig,
    EvalConfig,
    GateConfig,
    LoraConfig,
    ModelConfig,
    RegistryConfig,
    ResourcesConfig,
    Section,
    ServeConfig,
    SourceConfig,
    TrainConfig,
)
from pipelines.storage import nearest_path

__all__ = [
    "AuditConfig",
    "DataConfig",
    "EvalConfig",
    "GateConfig",
    "LoraConfig",
    "ModelConfig",
    "Recipe",
    "RegistryConfig",
    "ResourcesConfig",
    "Section",
    "ServeConfig",
    "SourceConfig",
    "TrainConfig",
    "load_recipe",
    "parse_recipe",
    "with_paths",
]


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
        mistakes = list(_contradictions(self.model, self.lora, self.train))
        if self.serve.engine and self.train.method == "lora":
            mistakes += [f"{line}, or serve.engine" for line in unservable(self.lora, self.serve.engine)]
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
        refused = unregistrable(self.lora)
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
            return [f"serve.engine=vllm: start vLLM with --max-lora-rank {vllm_max_rank(self.lora)}"]
        return [] if self.serve.engine else unservable(self.lora, None)

    @property
    def digest(self) -> str:
        """Hex sha256 of the resolved recipe, every default included."""
        return digest_of(self.model_dump(mode="json"))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _contradictions(model: ModelConfig, lora: LoraConfig, train: TrainConfig) -> Iterator[str]:
    """One line for each pair of keys that cannot go together: what was given, why not, what to set."""
    batch, micro, quantized = train.global_batch, train.micro_batch, model.quantization
    if batch % micro:
        yield f"train.global_batch={batch} is not a multiple of train.micro_batch={micro}: set global_batch to a multiple"
    if quantized != "none" and (train.zero == 3 or train.offload == "parameters"):
        bits = {"nf4": "4-bit", "int8": "8-bit", "fp8": "float8"}[quantized]
        given = "train.zero=3 splits" if train.zero == 3 else "train.offload=parameters moves"
        yield f"{given} the base's weights, which {bits} weights do not support: set train.zero=2 and train.offload=none"
    if train.offload == "parameters" and train.zero not in (3, "auto"):
        yield f"train.offload=parameters needs the weights split over the workers: set train.zero=3 (given: {train.zero})"
    if train.offload == "optimizer" and train.zero == 0:
        yield "train.offload=optimizer needs a split optimizer: set train.zero=1, 2 or 3 (given: 0)"
    if train.optimizer != "adamw" and train.zero == 3:
        yield (
            "train.zero=3 empties the optimizer's list of weights between steps, by which "
            f"train.optimizer={train.optimizer} finds its moments: set train.zero=0, 1 or 2, or train.optimizer=adamw"
        )
    if train.optimizer != "adamw" and train.offload not in ("none", "auto"):
        yield (
            f"train.offload={train.offload} steps in CPU memory, and train.optimizer={train.optimizer} is made for the GPU's: "
            "set train.offload=none, or train.optimizer=adamw"
        )
    if lora.init == "loftq" and quantized != "nf4":
        yield f"lora.init=loftq corrects nf4's rounding: set model.quantization=nf4 (given: {quantized})"
    if lora.init == "pissa" and quantized != "none":
        yield f"lora.init=pissa changes the base's weights: set model.quantization=none (given: {quantized})"
    whole = [name for name in lora.modules_to_save if name not in ("lm_head", "embed_tokens", "norm")]
    if whole and quantized == "fp8":
        yield f"lora.modules_to_save={whole!r} train weights that model.quantization=fp8 holds in float8: set it to none"
    if lora.dora and quantized == "fp8":
        yield "lora.dora=true reads the base's weights, which model.quantization=fp8 hides: set model.quantization=none"
    if lora.dora and lora.init in ("pissa", "loftq"):
        yield f"lora.dora=true keeps the base's norms, which lora.init={lora.init} changes: set one of the two"
    if train.method == "full" and quantized != "none":
        yield f"train.method=full trains the base's weights: set model.quantization=none (given: {quantized})"


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `section.key=value` overrides (values in YAML).

    Raises UserError with one line for a missing file, bad YAML, an unknown key (naming the nearest valid one), a value
    of the wrong kind, or fields that contradict each other.
    """
    path = Path(path)
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except OSError as error:
        near = None if path.exists() else nearest_path(path)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}){hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        held = "nothing" if data is None else type(data).__name__
        raise UserError(f"{path}: a recipe is a mapping of sections, this file holds {held}")
    _resolve_paths(data, path.parent)
    given: dict[str, Any] = {}
    for override in overrides:
        _apply_override(given, override)
    _resolve_paths(given, Path.cwd())
    return parse_recipe(_merged(data, given), " ".join([str(path), *(f"-s {override}" for override in overrides)]))


def parse_recipe(data: Mapping[str, Any], origin: str = "recipe") -> Recipe:
    """Check a recipe that is already plain data. Raises UserError as `load_recipe` does."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{origin}: " + explain(error, Recipe)) from error


def with_paths(recipe: Recipe, move: Callable[[str], str]) -> Recipe:
    """The same recipe with `move` applied to the base and to every path of a source or benchmark."""
    data = recipe.model_dump()
    data["model"]["base"] = move(data["model"]["base"])
    for source in data["data"]["sources"]:
        source["path"] = move(source["path"])
    data["data"]["benchmarks"] = [move(path) for path in data["data"]["benchmarks"]]
    return Recipe.model_validate(data)


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"-s {override}: expected section.key=value, for example -s lora.r=8")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"-s {override}: the value is not valid YAML") from error
    *sections, last = key.strip().split(".")
    here: Any = data
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise UserError(f"-s {override}: {section!r} is not a section")
    here[last] = value


def _merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return {**base, **{k: _merged(base.get(k), v) for k, v in over.items()}}
    return over


def _resolve_paths(data: dict[str, Any], folder: Path) -> None:
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("base"), str):
        base = model["base"]
        # A Hub id such as org/name looks like a path; it is one where that folder exists.
        if base.startswith((".", "/", "~")) or (base and (folder / base).is_dir()):
            model["base"] = _absolute(base, folder)
    section = data.get("data")
    if isinstance(section, dict) and "sources" in section:
        sources = section["sources"]
        sources = [sources] if isinstance(sources, str) else sources
        if isinstance(sources, list):
            section["sources"] = [_source(s, folder) for s in sources]
    if isinstance(section, dict) and isinstance(section.get("benchmarks"), list):
        section["benchmarks"] = [_absolute(p, folder) if isinstance(p, str) else p for p in section["benchmarks"]]


def _source(source: Any, folder: Path) -> Any:
    if isinstance(source, str):
        return {"path": _absolute(source, folder)}
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": _absolute(source["path"], folder)}
    return source


def _absolute(path: str, folder: Path) -> str:
    if "://" in path:
        return path
    return str((folder.absolute() / Path(path).expanduser()).resolve())


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which plain YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)
