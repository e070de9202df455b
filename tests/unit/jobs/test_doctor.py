"""`doctor`: what it blocks on, what it only warns of, and that a healthy machine passes."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections import namedtuple

import pytest

from jobs.cluster import machine as module
from jobs.cluster.machine import BLOCKER, OK, WARNING, Check, check_machine, checks_table

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def requires(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the installed package asks for, to be filled by the test."""
    wanted: list[str] = []
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)
    return wanted


def found(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_packages_outside_their_range_or_missing_block(requires, tmp_path):
    requires += ["numpy>=99", "no-such-package>=1", "pydantic>=2", 'vllm>=1; extra == "vllm"']
    checks = check_machine(tmp_path)
    assert (
        found(checks, "numpy").verdict == BLOCKER and "numpy>=99" in found(checks, "numpy").advice
    )
    assert found(checks, "no-such-package").observed == "missing"
    assert found(checks, "packages").observed.startswith("pydantic 2.") and not any(
        c.name == "vllm" for c in checks
    )


@pytest.mark.parametrize(
    ("free", "verdict"), [(10 << 20, BLOCKER), (5 << 30, WARNING), (50 << 30, OK)]
)
def test_the_disk_of_a_store_that_is_not_there_yet(requires, tmp_path, monkeypatch, free, verdict):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, free))
    check = found(check_machine(tmp_path / "not" / "yet"), "disk")
    assert check.verdict == verdict and str(tmp_path) in check.observed


def test_ray_without_a_token_is_a_warning_and_a_missing_token_file_blocks(
    requires, tmp_path, monkeypatch
):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "gone"))
    assert found(check_machine(tmp_path), "ray authentication").verdict == BLOCKER
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert found(check_machine(tmp_path), "ray authentication").verdict == WARNING


def test_the_table_shows_brackets_as_they_are(capsys):
    from rich.console import Console

    Console(width=100).print(checks_table([Check("disk", "[/odd] place", BLOCKER, "[free] space")]))
    shown = capsys.readouterr().out
    assert "[/odd] place" in shown and "[free] space" in shown


def test_old_python_is_named_with_what_is_tested(monkeypatch):
    monkeypatch.setattr(module.platform, "python_version", lambda: "3.14.0")
    check = module._python()
    assert check.verdict == WARNING and "3.11" in check.advice
