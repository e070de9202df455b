"""An import-linter contract: a heavy dependency, or a part of it such as `ray.data`, has owners.

import-linter's own `forbidden` contract knows an external package only as a whole, so it cannot
distinguish `ray.data` from `ray.train`. This one reads the files: every `import`, `from ... import`
and `ray.data.<...>` counts, inside functions too. Imports under `if TYPE_CHECKING:` load nothing
and are allowed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grimp
from importlinter import Contract, ContractCheck, fields, output


class OwnerContract(Contract):
    """`owners` has lines `dependency = module module ...`; a module owns for its submodules too."""

    type_name = "owner"
    owners = fields.ListField(subfield=fields.StringField())

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        rules = dict(_parse(line) for line in self.owners)  # type: ignore[attr-defined]
        root = Path.cwd()
        violations = []
        for module in sorted(graph.modules):
            path = _file_of(root, module)
            if path is None:
                continue
            for dependency, line in uses(ast.parse(path.read_text(), str(path)), rules):
                if not any(_within(module, owner) for owner in rules[dependency]):
                    violations.append(
                        f"{path.relative_to(root)}:{line} uses {dependency}, owned by "
                        f"{rules[dependency]}"
                    )
        return ContractCheck(kept=not violations, metadata={"violations": violations})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for text in check.metadata["violations"]:
            output.print_error(text)


def uses(tree: ast.AST, dependencies: Any) -> Iterator[tuple[str, int]]:
    """Every (dependency, line) among `dependencies` that the module's code names at run time."""
    for node in _runtime_nodes(tree):
        for name in _names(node):
            for dependency in dependencies:
                if _within(name, dependency):
                    yield dependency, getattr(node, "lineno", 0)


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    ):
        children: list[ast.AST] = list(node.orelse)
    else:
        yield node
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from _runtime_nodes(child)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return [f"{node.value.id}.{node.attr}"] if node.value.id == "ray" else []
    return []


def _parse(line: str) -> tuple[str, list[str]]:
    dependency, _, modules = line.partition("=")
    return dependency.strip(), modules.split()


def _within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(parent + ".")


def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)
