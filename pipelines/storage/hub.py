"""The folder with a base model's files: the user's own, or the Hub's snapshot of it."""

from __future__ import annotations

from pathlib import Path

from pipelines.core.errors import UserError
from pipelines.storage.folders import nearest_path

_TEXT = ("*.json", "*.jinja", "tokenizer*")
_WEIGHTS = "*.safetensors"


def local_base_dir(base: str, revision: str | None = None, weights: bool = True) -> Path:
    """The folder with a base's files: `base` itself, or the Hub snapshot, fetched once into the Hub's own cache.

    Without `weights` only configuration and tokenizer are fetched.

    Raises UserError when neither a model folder nor a reachable Hub id is given.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"model.base={base}: the folder holds no config.json, so it is no model"
            )
        return folder
    if base.startswith(("/", ".", "~")) or base.count("/") > 1:
        near = nearest_path(folder)
        hint = (
            f"did you mean {near}?" if near else "set a model's folder or a Hub id such as org/name"
        )
        raise UserError(f"model.base={base}: no such folder; {hint}")
    return _snapshot(base, revision, [*_TEXT, _WEIGHTS] if weights else list(_TEXT))


def _snapshot(base: str, revision: str | None, patterns: list[str]) -> Path:
    import huggingface_hub
    import huggingface_hub.errors

    try:
        return Path(
            huggingface_hub.snapshot_download(base, revision=revision, allow_patterns=patterns)
        )
    except (
        OSError,
        huggingface_hub.errors.HfHubHTTPError,
        huggingface_hub.errors.HFValidationError,
    ) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"model.base={base}: not a folder, and the Hub did not give it ({reason}); "
            "set a folder, or check the id, the network and HF_TOKEN"
        ) from error
