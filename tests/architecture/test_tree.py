"""The repository: the tree in docs/design.md is true, files are small and documented, recipes load,
and the cluster file fits."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.config.load import load_recipe

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("pipelines", "jobs", "serve_app")
MAX_LINES = 300
MAX_FILE_BYTES = 8 << 20


def tracked() -> list[Path]:
    """Files of the repository and those about to be added; in a copy without git, all files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        names = [str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()]
    else:
        names = [name for name in listed.stdout.split("\0") if name]
    hidden = {".venv", ".git", "build", "__pycache__"}
    return [
        ROOT / name
        for name in names
        if not hidden & set(Path(name).parts) and (ROOT / name).is_file()
    ]


def sources() -> list[Path]:
    return [p for p in tracked() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in PACKAGES]


def design_tree() -> list[str]:
    """The paths of the tree in docs/design.md, which indents by two spaces per parent folder."""
    text = (ROOT / "docs" / "design.md").read_text()
    block = re.search(r"<!-- tree -->\n```\w*\n(.*?)```", text, re.DOTALL)
    assert block, "docs/design.md has no tree after <!-- tree -->"
    paths, parents = [], []
    for line in block[1].splitlines():
        name, depth = line.split()[0], (len(line) - len(line.lstrip())) // 2
        assert len(line.split()) > 2, f"docs/design.md: {name} has no description"
        parents[depth:] = [name.rstrip("/")]
        paths.append("/".join(parents))
    return paths


def test_every_path_of_the_design_pages_tree_exists() -> None:
    missing = [path for path in design_tree() if not (ROOT / path).exists()]
    assert not missing


def test_every_source_file_and_top_level_entry_is_in_the_design_pages_tree() -> None:
    listed = set(design_tree())
    wanted = {str(p.relative_to(ROOT)) for p in sources() if p.name != "__init__.py"}
    wanted |= {p.relative_to(ROOT).parts[0] for p in tracked()} - {".gitignore", ".ci"}
    assert not wanted - listed


# Files that play the same role in several packages may share a name.
ROLES = {"__init__.py", "stage.py", "errors.py", "protocol.py"}
ROLE_FOLDERS = ("pipelines/config/schema", "jobs/verbs", "jobs/graphs", "jobs/views")


def test_no_two_source_files_share_a_name_unless_they_play_the_same_role() -> None:
    """Sections of a recipe, commands, graphs and views are named after what they are about."""
    places: dict[str, list[str]] = {}
    for path in sources():
        place = path.relative_to(ROOT)
        if place.name not in ROLES and not str(place).startswith(ROLE_FOLDERS):
            places.setdefault(place.name, []).append(str(place))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_recipe_loads_and_is_named_base_method_data_hardware(path: Path) -> None:
    recipe = load_recipe(path)
    base, method, _, hardware = path.stem.split("_")
    assert method == ("qlora" if recipe.model.quantization == "nf4" else "lora")
    assert (hardware == "cpu") == (recipe.resources.gpus_per_worker == 0)
    assert base.replace("-", "") in recipe.model.base.lower().replace("-", "")
    if hardware.startswith(tuple("123456789")):
        assert recipe.resources.max_workers * recipe.resources.gpus_per_worker == int(
            hardware.split("x")[0]
        )


def public_definitions(path: Path) -> Iterator[tuple[str, ast.AST]]:
    tree = ast.parse(path.read_text())
    yield "the module", tree
    for node in tree.body:
        if isinstance(
            node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        ) and not node.name.startswith("_"):
            yield node.name, node


def test_everything_public_has_a_docstring() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for name, node in public_definitions(path)
        if not ast.get_docstring(node)  # type: ignore[arg-type]
        and not (path.name == "__init__.py" and not path.read_text().strip())
    ]
    assert not missing


def test_no_python_file_is_longer_than_300_lines() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for p in tracked()
        if p.suffix == ".py" and (n := len(p.read_text().splitlines())) > MAX_LINES
    }
    assert not long


def test_no_tracked_file_is_large_or_names_a_machines_path() -> None:
    machine = re.compile(rb"(?<![\w.])/(?:root|home/(?!ray/)\w+|Users|work|tmp/\w+)/\w")
    wrong = []
    for path in tracked():
        data = path.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            wrong.append(f"{path.relative_to(ROOT)}: {len(data)} bytes")
        if b"\0" not in data[:4096] and (match := machine.search(data)):
            wrong.append(f"{path.relative_to(ROOT)}: {match[0].decode()}...")
    assert not wrong


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys, jobs.cli as c\n"
        "try: c.app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'transformers', 'peft', 'deepspeed', 'numpy', 'pyarrow'}\n"
        "heavy |= {'openai', 'pydantic'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "doctor" in shown and shown.splitlines()[-1] == "HEAVY []"


def test_cluster_file_is_valid_for_rays_launcher_and_asks_for_a_token() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    given = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    config = prepare_config(given)
    validate_config(config)
    gpu = config["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0 < gpu["max_workers"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    started = [command for command in starts if "ray start" in command]
    assert len(started) == 2 and all(
        command.startswith("RAY_AUTH_MODE=token ") for command in started
    )
    assert "--dashboard-host=127.0.0.1" in started[0]
    missing = [
        p
        for p in given["file_mounts"].values()
        if not p.startswith("~") and not (ROOT / p).is_file()
    ]
    assert not missing


def test_cluster_images_carry_the_pinned_ray() -> None:
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    images = re.findall(r"rayproject/ray:([\d.]+)-py311", (ROOT / "cluster.yaml").read_text())
    assert pinned and images and set(images) == {pinned[1]}


def test_named_extras_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    texts = [
        ROOT / "README.md",
        ROOT / "cluster.yaml",
        ROOT / "Makefile",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/*"),
    ]
    named = re.findall(
        r"(?:[ '\"(`]\.|loraforge)\[([a-z,]+)\]", "\n".join(text.read_text() for text in texts)
    )
    assert named and {extra for group in named for extra in group.split(",")} <= set(extras)
