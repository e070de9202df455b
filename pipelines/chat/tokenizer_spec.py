"""A base's tokenizer as plain data, so that workers render and encode without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.chat.template_variables import strftime_now
from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError, one_line
from pipelines.storage import local_base_dir

# Classes that use tokenizer.json unchanged; any other class may rebuild the tokenizer in Python.
_GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
_NAMED_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerSpec:
    """A tokenizer in the tokenizers library's format, its chat template and named special tokens.

    `named_tokens` maps `eos_token` and so on to the tokens' texts; `extra_stop_ids` are the end
    tokens that the base's generation_config.json lists. `tool_template` renders conversations with
    tools, None where `template` does. `arguments` are variables that every render gives to the
    template, and `template_key` is the recipe key that the template comes from, for messages.
    """

    tokenizer_json: str
    template: str | None
    named_tokens: dict[str, str]
    extra_stop_ids: tuple[int, ...] = ()
    tool_template: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    template_key: str = "model.base"

    @property
    def tokenizer_digest(self) -> str:
        return digest_of({"tokenizer": json.loads(self.tokenizer_json), "named": self.named_tokens})

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of every render: named tokens, arguments, and `strftime_now`."""
        now = {"strftime_now": strftime_now(self.arguments)}
        return {**self.named_tokens, **self.arguments, **now}


def added_tokens(spec: TokenizerSpec) -> list[dict[str, Any]]:
    """The tokens that are matched in a text before all others, with id, content and flags."""
    return json.loads(spec.tokenizer_json)["added_tokens"]


def load_spec(base: str, revision: str | None = None) -> TokenizerSpec:
    """Read a base's tokenizer from a folder or the Hub.

    Raises UserError when the base cannot be read or has no usable tokenizer.
    """
    folder = local_base_dir(base, revision, weights=False)
    if (
        not (folder / "tokenizer_config.json").is_file()
        and not (folder / "tokenizer.json").is_file()
    ):
        raise UserError(
            f"model.base={base}: the folder has no tokenizer.json and no tokenizer_config.json; "
            "set model.base to a folder that has one"
        )
    config = _read_json(folder / "tokenizer_config.json")
    if config.get("tokenizer_class") in _GENERIC_CLASSES and (folder / "tokenizer.json").is_file():
        return _from_folder(folder, config)
    return _from_transformers(base, folder)


def _from_folder(folder: Path, config: dict[str, Any]) -> TokenizerSpec:
    templates = _templates(folder, config.get("chat_template"))
    named = {k: _token_text(config[k]) for k in _NAMED_TOKENS if config.get(k)}
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    return _spec(text, templates, named, folder)


def _templates(folder: Path, configured: Any) -> dict[str, str]:
    """A base's chat templates by name, as transformers reads them: files replace the configured."""
    files = {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        files["default"] = folder / "chat_template.jinja"
    if files:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    # Bases with a processor for images may have their template only there.
    configured = configured or _read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(configured, list):
        return {each["name"]: each["template"] for each in configured}
    return configured if isinstance(configured, dict) else {"default": configured}


def _spec(
    tokenizer_json: str, templates: Mapping[str, str], named: dict[str, str], folder: Path
) -> TokenizerSpec:
    return TokenizerSpec(
        tokenizer_json,
        templates.get("default"),
        named,
        _generation_stops(folder),
        templates.get("tool_use"),
    )


def _from_transformers(base: str, folder: Path) -> TokenizerSpec:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        reason = one_line(error, 200)
        raise UserError(f"model.base={base}: its tokenizer cannot be loaded ({reason})") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(
            f"model.base={base}: {type(tokenizer).__name__} has no fast tokenizer, so token "
            "offsets are unknown; set model.base to a base with a tokenizer.json"
        )
    named = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
    return _spec(backend.to_str(), _templates(folder, tokenizer.chat_template), named, folder)


def _generation_stops(folder: Path) -> tuple[int, ...]:
    stops = _read_json(folder / "generation_config.json").get("eos_token_id", [])
    return tuple(stops) if isinstance(stops, list) else (int(stops),)


def _token_text(value: Any) -> str:
    return value["content"] if isinstance(value, dict) else str(value)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from error
