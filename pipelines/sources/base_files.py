"""The files of a base model: its weights, and the fingerprint that identifies it in any folder."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.core.digests import digest_of
from pipelines.core.errors import UserError
from pipelines.sources.hashes import FileHashes
from pipelines.storage import local_base_dir

_WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json")
_VOLATILE_KEYS = ("_name_or_path", "transformers_version")


def weight_files(base: str, revision: str | None = None) -> list[Path]:
    """A base's safetensors files and their index, sorted by name.

    Raises UserError when there are none or the base cannot be reached.
    """
    folder = local_base_dir(base, revision)
    weights = sorted({path for pattern in _WEIGHT_PATTERNS for path in folder.glob(pattern)})
    if not weights and not Path(base).expanduser().is_dir():
        raise UserError(
            f"model.base={base}: the Hub's cache has no *.safetensors of it; unset HF_HUB_OFFLINE "
            "to download them, or choose a base with weights in safetensors"
        )
    if not weights:
        raise UserError(
            f"model.base={base}: no *.safetensors in {folder}; other weight formats can run code "
            "and are refused: convert the base to safetensors"
        )
    return weights


def base_fingerprint(
    base: str, revision: str | None = None, hashes: FileHashes | None = None, fresh: bool = False
) -> str:
    """Hex SHA-256 over a base's architecture and weights: equal bases have equal fingerprints.

    `hashes` remembers the digests of the weight files; `fresh` as in `FileHashes.sha256`.
    """
    hashes = hashes or FileHashes()
    folder = local_base_dir(base, revision)
    try:
        config = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'}: not valid JSON ({error})") from error
    for key in _VOLATILE_KEYS:
        config.pop(key, None)
    weights = weight_files(base, revision)
    return digest_of(
        {
            "config": config,
            "weights": {path.name: hashes.sha256(path, fresh) for path in weights},
        }
    )
