"""The build step that puts the recipes and the pocket model into the wheel.

The repository keeps them once, at `recipes/` and `assets/pocket/`. The build copies the files that
a run reads to `pipelines/_shipped/`, in the same folders, so that the recipes' relative paths
(`../assets/pocket/...`) also hold in the wheel. An editable install copies nothing: it uses the
repository's own folders. The rest of the build is in pyproject.toml.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
TARGET = "pipelines/_shipped"
# Only what a run reads: the scripts, logs and plots of the pocket model's pretraining stay behind.
PATTERNS = (
    "recipes/*.yaml",
    "assets/pocket/model/*.json",
    "assets/pocket/model/*.jinja",
    "assets/pocket/model/*.safetensors",
    "assets/pocket/tasks/*.json",
    "assets/pocket/tasks/*.jsonl",
)


def shipped_files() -> list[str]:
    """Paths, relative to the repository, of the files that ship inside the wheel.

    Raises FileNotFoundError for a pattern without a file: such a wheel's demo could not run.
    """
    files: list[str] = []
    for pattern in PATTERNS:
        matches = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(pattern))]
        if not matches:
            raise FileNotFoundError(f"setup.py: no file matches {pattern}")
        files += matches
    return files


class BuildPackages(build_py):
    """Copies the packages and then the shipped files into the build folder."""

    def run(self) -> None:
        """Fill the build folder; an editable install needs none of it."""
        if not self.editable_mode:
            # setuptools never empties this folder: a module deleted since would stay in the wheel.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if not self.editable_mode:
            for path in shipped_files():
                target = Path(self.build_lib, TARGET, path)
                self.mkpath(str(target.parent))
                self.copy_file(str(ROOT / path), str(target))

    def get_source_files(self) -> list[str]:
        """Paths that the source distribution must hold so that a wheel can be built from it."""
        return [*super().get_source_files(), *shipped_files()]


setup(cmdclass={"build_py": BuildPackages})
