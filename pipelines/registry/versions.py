"""Model versions: immutable copies of an adapter with its base and its ancestry.

STORE/models/<digest12>/    a version `name@digest12`: manifest, adapter files and chat template,
                            never changed
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.adapter_format.adapter_check import check_adapter
from pipelines.adapter_format.peft_files import CONFIG_FILE, WEIGHTS_FILE
from pipelines.core.artifacts import ModelVersion, TemplateChoice
from pipelines.core.digests import digest_of, short
from pipelines.core.errors import UserError
from pipelines.core.identifiers import MODEL_NAME
from pipelines.core.noun_json import from_json, to_json
from pipelines.registry.errors import EntryError
from pipelines.storage import Artifact, Store, sha256_file, verify

KIND = "models"
_DIGEST = re.compile(r"[0-9a-f]{12}")
_PREFIX = re.compile(r"[0-9a-f]{4,11}")
_ADAPTER_FOLDER = "adapter"
# As transformers and vLLM name a base's default template and the one for conversations with tools.
_TEMPLATE_FILES = ("chat_template.jinja", "additional_chat_templates/tool_use.jinja")
# Fields that `_to_metadata` makes relative to the store.
_URIS = ("row_ids_uri", "canonical_uri")


class Versions:
    """The versions inside one store. Stateless."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def register(
        self, adapter_dir: Path, version: ModelVersion, template: TemplateChoice | None = None
    ) -> ModelVersion:
        """Check an adapter and copy its files into the store as an immutable version.

        `version` describes it; `digest`, `adapter_uri` and `created` are filled in here, and with
        `template`, which trained it, the fields about that. The digest covers the model's name, the
        base's fingerprint, the template and the adapter's bytes, so the same weights give the same
        version. Raises UserError for an adapter that `check_adapter` refuses.
        """
        check_model_name(version.name)
        if not version.base_fingerprint:
            raise UserError(
                f"{version.name}: an adapter cannot be registered without its base's fingerprint"
            )
        check_adapter(adapter_dir)
        files = {name: sha256_file(adapter_dir / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        identity = {"name": version.name, "base_fingerprint": version.base_fingerprint}
        if template:
            # Two templates that differ in the prompt alone can train the same weights.
            identity |= {"template": digest_of(template)}
            version = dataclasses.replace(
                version, template_digest=template.digest, template_arguments=template.arguments
            )
        digest = digest_of(identity | {"files": files})
        artifact = self._store.find(KIND, digest)
        if artifact is None:
            created = datetime.now(UTC).isoformat()
            version = dataclasses.replace(version, digest=digest, created=created)
            with self._store.create_artifact(KIND, digest, parents=version.lineage) as draft:
                _copy_adapter(adapter_dir, draft.path / _ADAPTER_FOLDER, files)
                _write_template(template, draft.path)
                draft.metadata |= self._to_metadata(version)
            artifact = self._store.find(KIND, digest)
        assert artifact is not None, digest
        return self._from_artifact(artifact)

    def find(self, version_id: str) -> ModelVersion | None:
        """The version `model@digest12`, or None. Raises EntryError when its manifest is damaged.

        A unique prefix of the digest, of four characters or more, will do.
        """
        model, _, digest = version_id.partition("@")
        if _PREFIX.fullmatch(digest):
            names = self._store.names(KIND)
            matches = [name for name in names if name.startswith(digest)]
            digest = matches[0] if len(matches) == 1 else digest
        if not _DIGEST.fullmatch(digest):
            return None
        artifact = self._store.read(self._store.folder(KIND, digest))
        version = self._from_artifact(artifact) if artifact else None
        return version if version and version.name == model else None

    def list(self) -> list[ModelVersion]:
        """Every version, oldest first. Versions whose manifest is damaged are left out."""
        return sorted(self._readable(), key=lambda version: version.created)

    def adapter_dir(self, version: ModelVersion) -> Path:
        """A local folder with a version's two PEFT files, checked against their registered sha256.

        Raises UserError when a file is missing or altered.
        """
        artifact = self._store.find(KIND, version.digest)
        if artifact is None:
            raise UserError(f"{version.id}: no longer exists in {self._store.uri}")
        folder = self._store.local_dir(artifact.ref)
        verify(folder)
        return folder / _ADAPTER_FOLDER

    def template(self, version: ModelVersion) -> TemplateChoice:
        """The chat template and arguments that trained a version.

        A version that was registered without its template gets the base's own. Raises UserError
        when a file is missing or altered.
        """
        folder = self.adapter_dir(version).parent
        text, tool_text = (_read_text(folder / name) for name in _TEMPLATE_FILES)
        return TemplateChoice(text, tool_text, dict(version.template_arguments))

    def _readable(self) -> Iterator[ModelVersion]:
        for artifact in self._store.list(KIND):
            with contextlib.suppress(EntryError):
                yield self._from_artifact(artifact)

    def _to_metadata(self, version: ModelVersion) -> dict[str, Any]:
        metadata = to_json(version)
        del metadata["adapter_uri"]  # it follows from the artifact's own folder
        return metadata | {name: self._store.relative(metadata[name]) for name in _URIS}

    def _from_artifact(self, artifact: Artifact) -> ModelVersion:
        """The version of an artifact. Raises EntryError for a damaged manifest."""
        metadata = dict(artifact.metadata)
        metadata["adapter_uri"] = f"{artifact.ref.uri}/{_ADAPTER_FOLDER}"
        metadata |= {
            name: self._store.resolve(metadata[name]) for name in _URIS if metadata.get(name)
        }
        try:
            version = from_json(ModelVersion, metadata)
            matches = short(version.digest) == short(artifact.ref.key)
        except TypeError as error:
            raise EntryError(f"{artifact.ref.uri}: its manifest is damaged ({error})") from error
        if not matches:
            raise EntryError(f"{artifact.ref.uri}: its manifest describes another version")
        return version


def check_model_name(name: str) -> None:
    """Raise UserError for a name that is not a model's or could leave the registry's folder."""
    if not re.fullmatch(MODEL_NAME, name):
        raise UserError(f"{name!r}: not a model name; it must match {MODEL_NAME}")


def _copy_adapter(source: Path, target: Path, files: dict[str, str]) -> None:
    """Copy files and compare them with their sha256. Raises UserError on a difference."""
    target.mkdir()
    for name, sha256 in files.items():
        shutil.copyfile(source / name, target / name)
        if sha256_file(target / name) != sha256:
            raise UserError(f"{source / name}: changed while it was being registered")


def _write_template(template: TemplateChoice | None, folder: Path) -> None:
    texts = (template.text, template.tool_text) if template else ()
    for name, text in zip(_TEMPLATE_FILES, texts, strict=False):
        if text is not None:
            (folder / name).parent.mkdir(exist_ok=True)
            # Bytes, as writing text would change line ends on some systems.
            (folder / name).write_bytes(text.encode())


def _read_text(path: Path) -> str | None:
    return path.read_bytes().decode() if path.is_file() else None
