"""The import contracts of pyproject.toml hold, and the contract of our own sees what it should."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from importlinter.application import use_cases
from importlinter.configuration import configure

from tests.architecture.owner_contract import uses

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    configure()
    is_kept = use_cases.lint_imports(config_filename="pyproject.toml", cache_dir=None, no_logo=True)
    assert is_kept, capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import ray.data", ["ray.data"]),
        ("def late():\n    from ray import data as rows", ["ray.data"]),
        ("from ray.data.context import DataContext", ["ray.data"]),
        ("import ray\nray.data.read_json('x')", ["ray.data"]),
        ("import deepspeed.comm as dist", ["deepspeed"]),
        ("import ray\nray.get(ray.put(1))", []),
        ("from ray import train", []),
        ("import raydata", []),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import deepspeed", []),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    import deepspeed", ["deepspeed"]),
    ],
)
def test_owner_contract_sees_every_way_to_import(code: str, expected: list[str]) -> None:
    assert (
        sorted({name for name, _ in uses(ast.parse(code), ("ray.data", "deepspeed"))}) == expected
    )
