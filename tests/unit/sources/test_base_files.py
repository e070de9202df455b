"""The fingerprint of a base's files."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.sources.base_files import base_fingerprint


def test_the_fingerprint_depends_on_the_weights_and_not_on_the_folder(
    pocket_base: str, tmp_path: Path
) -> None:
    shutil.copytree(pocket_base, tmp_path / "copy")
    assert base_fingerprint(str(tmp_path / "copy")) == base_fingerprint(pocket_base)
    weights = tmp_path / "copy" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert base_fingerprint(str(tmp_path / "copy")) != base_fingerprint(pocket_base)
