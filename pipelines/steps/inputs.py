"""The external inputs of a recipe (base, sources, tokenizer, template), resolved once per
command.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.digests import digest_of
from pipelines.sources.base_files import base_fingerprint
from pipelines.sources.hashes import FileHashes
from pipelines.sources.source_files import SourceFile, benchmark_files, find_files
from pipelines.storage import local_base_dir

if TYPE_CHECKING:
    from pipelines.chat import ChatRenderer

_TOKENIZER_FACTS = "tokenizer-2"  # raise the number when a renderer has other digests
_TOKENIZER_PATTERNS = ("*.json", "*.jinja", "*/*.jinja", "*.txt", "*.model", "tokenizer*")


@dataclass(frozen=True)
class HashedFile:
    """A source file and the hex SHA-256 of its bytes."""

    file: SourceFile
    sha256: str


class Inputs:
    """The resolved inputs of one recipe. Each is looked up when first asked for, and only once.

    Raises UserError for a missing source, an unreachable base, or a base without a tokenizer or a
    chat template that can be used.
    """

    def __init__(self, recipe: Recipe, hashes: FileHashes | None = None) -> None:
        self.recipe = recipe
        self.hashes = hashes or FileHashes()

    @cached_property
    def sources(self) -> tuple[HashedFile, ...]:
        """The files of data.sources, each source's in the order of their names."""
        return self._hashed(find_files(self.recipe.data.sources))

    @cached_property
    def benchmarks(self) -> tuple[HashedFile, ...]:
        """The files of data.benchmarks."""
        return self._hashed(benchmark_files(self.recipe.data.benchmarks))

    @cached_property
    def base_fingerprint(self) -> str:
        """Hex SHA-256 over the base's architecture and weights."""
        model = self.recipe.model
        return base_fingerprint(model.base, model.revision, self.hashes)

    def fresh_base_fingerprint(self) -> str:
        """The same, of bytes that this process read itself: for acts that cannot be undone."""
        model = self.recipe.model
        return base_fingerprint(model.base, model.revision, self.hashes, fresh=True)

    @property
    def tokenizer_digest(self) -> str:
        return self._tokenizer["tokenizer"]

    @property
    def template_digest(self) -> str:
        """Hex SHA-256 of the chat template, without its arguments."""
        return self._tokenizer["template"]

    @property
    def template(self) -> TemplateChoice:
        """The chat template and arguments that the recipe chooses; the base's own if it names none.

        Raises UserError for a template that does not exist or cannot be used.
        """
        _ = self._tokenizer  # checks it
        return self._chosen

    @cached_property
    def _chosen(self) -> TemplateChoice:
        from pipelines.chat.default_templates import chosen_template

        return chosen_template(self.recipe.data)

    @cached_property
    def renderer(self) -> ChatRenderer:
        """The renderer of the recipe's base and template.

        Raises UserError when the tokenizer or the template cannot be used.
        """
        from pipelines.chat import ChatRenderer

        return ChatRenderer.load(self.recipe.model.base, self.recipe.model.revision, self._chosen)

    @cached_property
    def _tokenizer(self) -> Mapping[str, Any]:
        model = self.recipe.model
        folder = local_base_dir(model.base, model.revision, weights=False)
        files = sorted({path for pattern in _TOKENIZER_PATTERNS for path in folder.glob(pattern)})

        def describe() -> dict[str, Any]:
            own = self.renderer
            return {"tokenizer": own.tokenizer_digest, "template": own.template_digest}

        libraries = [version(name) for name in ("tokenizers", "transformers")]
        names = [str(path.relative_to(folder)) for path in files]
        label = [_TOKENIZER_FACTS, libraries, names, self._chosen]
        return self.hashes.remember(digest_of(label), files, describe)

    def _hashed(self, files: list[SourceFile]) -> tuple[HashedFile, ...]:
        return tuple(HashedFile(file, self.hashes.sha256(file.path)) for file in files)
