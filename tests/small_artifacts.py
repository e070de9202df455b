"""Small artifacts for tests of the store."""

from __future__ import annotations

from pathlib import Path

from pipelines.core.artifacts import ArtifactRef
from pipelines.storage import Store

KEY = "k" * 64


def write_artifact(
    store: Store, key: str = KEY, text: str = "hello", num_files: int = 3
) -> ArtifactRef:
    """Write an artifact of kind "things" with a few files in two folders."""
    with store.create_artifact("things", key, {"made-from": "p" * 64}) as draft:
        (draft.path / "deep" / "er").mkdir(parents=True)
        for number in range(num_files):
            (draft.path / "deep" / "er" / f"{number}.txt").write_text(text)
        (draft.path / "top.bin").write_bytes(bytes(range(256)))
        draft.metadata["text"] = text
    assert draft.ref is not None
    return draft.ref


def hidden_names(store: Store) -> list[str]:
    """Names in the folder of the artifacts that only their writers use."""
    return [path.name for path in Path(store.uri, "things").iterdir() if path.name[0] == "."]
