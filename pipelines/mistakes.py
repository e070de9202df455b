"""What is wrong with a recipe, in words: the key's place, what was given and what is valid; and what no engine serves."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pipelines.sections import LoraConfig

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for --max-lora-rank (0.24 to 0.29); an adapter may have any rank up to it."""
REGISTRY_MAX_RANK, REGISTRY_MAX_SCALE = 1024, 256.0
"""What an adapter may have that becomes a model version; `adapter_files` looks at the files themselves."""
_NEEDS_MORE = {
    "dora": "magnitudes beside A and B",
    "rank_pattern": "another rank in some modules",
    "alpha_pattern": "another scale in some modules",
    "modules_to_save": "whole modules beside A and B",
}


def unservable(lora: LoraConfig, engine: str | None) -> list[str]:
    """One line for each key of `lora` whose adapter `engine` (None: any that is known) cannot serve as it was trained.

    rsLoRA, LoRA+ and every `init` are plain LoRA once saved, PiSSA with twice the rank.
    """
    who = {"transformers": "the transformers engine", "vllm": "vLLM", None: "no engine here"}[engine]
    does = "serves" if engine is None else "does not serve"
    lines = [
        f"lora.{key} trains {what}, which {who} {does} and the registry refuses: unset it"
        for key, what in _NEEDS_MORE.items()
        if getattr(lora, key)
    ]
    rank = saved_rank(lora)
    if engine == "vllm" and rank > VLLM_RANKS[-1]:
        halved = " (twice lora.r, as PiSSA is saved)" if rank != lora.r else ""
        lines.append(f"the adapter's rank is {rank}{halved} and vLLM's highest is {VLLM_RANKS[-1]}: set lora.r lower")
    return lines


def unregistrable(lora: LoraConfig) -> list[str]:
    """One line for each reason why the registry would refuse the adapter that `lora` trains."""
    lines, rank = unservable(lora, None), saved_rank(lora)
    if rank > REGISTRY_MAX_RANK:
        halved = " (twice lora.r, as PiSSA is saved)" if rank != lora.r else ""
        lines.append(
            f"the adapter's rank is {rank}{halved} and the registry's highest is {REGISTRY_MAX_RANK}: set lora.r lower"
        )
    scale = lora.alpha / (math.sqrt(lora.r) if lora.rslora else lora.r)
    if scale > REGISTRY_MAX_SCALE:
        lines.append(
            f"lora.alpha={lora.alpha:g} at lora.r={lora.r} scales the adapter by {scale:g} and the registry's highest is "
            f"{REGISTRY_MAX_SCALE:g}: set lora.alpha lower"
        )
    return lines


def saved_rank(lora: LoraConfig) -> int:
    """The rank of the adapter as it is saved."""
    return lora.r * (2 if lora.init == "pissa" else 1)


def vllm_max_rank(lora: LoraConfig) -> int:
    """The least --max-lora-rank that vLLM takes for the adapter; `unservable` has said if there is none."""
    return next(rank for rank in VLLM_RANKS if rank >= saved_rank(lora))


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One clause for each key that is wrong, its name first; an unknown key comes with the nearest valid one."""
    clauses: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for item in error.errors():
        if item["type"] == "extra_forbidden":
            clauses[".".join(str(part) for part in item["loc"])] = [_unknown(item["loc"], model)]
            continue
        where = _dotted(item["loc"], model)
        if item["type"] not in ("missing", "value_error"):
            inputs[where] = item.get("input")
        message = "Expected a section of keys" if item["type"] == "model_type" else item["msg"]
        clauses.setdefault(where, []).append(message.removeprefix("Value error, "))
    given = {where: f" (given: {value!r})" for where, value in inputs.items()}
    return "; ".join(f"{where}: {' or '.join(said)}{given.get(where, '')}" for where, said in clauses.items())


def _unknown(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    *parents, last = (str(part) for part in loc)
    prefix = "".join(f"{part}." for part in parents)
    siblings = list(_fields(parents, model))
    elsewhere = [key for key in valid_keys(model) if key.rsplit(".", 1)[-1] == last]
    near = [prefix + key for key in difflib.get_close_matches(last, siblings, n=1)]
    near = elsewhere[:1] or near or difflib.get_close_matches(prefix + last, valid_keys(model), n=1)
    if near:
        return f"unknown key; did you mean {near[0]}?"
    return f"unknown key; valid here: {', '.join(siblings)}"


def _dotted(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """A place in the recipe without the names that pydantic adds for each alternative of a union."""
    parts: list[str] = []
    for part in loc:
        if not isinstance(part, int) and part not in _fields(parts, model):
            break
        parts.append(str(part))
    return ".".join(parts) or "recipe"


def _fields(parents: Sequence[str], model: type[BaseModel]) -> Mapping[str, Any]:
    """The fields of the section at a place; empty where there is none."""
    section: Any = model
    for part in parents:
        if part.isdigit():
            continue
        field = section.model_fields.get(part) if _is_section(section) else None
        inner = field.annotation if field else None
        section = next((t for t in (inner, *get_args(inner)) if _is_section(t)), None)
    return section.model_fields if _is_section(section) else {}


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def valid_keys(model: type[BaseModel]) -> list[str]:
    """Every key of a model of sections, dotted; those of a list's entries without a number."""
    keys = []
    for name in model.model_fields:
        keys.append(name)
        for key in _fields([name], model):
            keys.append(f"{name}.{key}")
            keys += [f"{name}.{key}.{inner}" for inner in _fields([name, key], model)]
    return keys
