"""The files of the repository, for tests that read it."""

import functools
import os
from pathlib import Path

from tests.support.processes import ROOT

NOT_OURS = ("__pycache__", ".egg-info", ".git", ".venv", ".data", ".hypothesis", "_cache")


@functools.cache
def repository_files() -> tuple[Path, ...]:
    """Returns every file that is kept in the repository, by its path from the root."""
    found = []
    for directory, below, names in os.walk(ROOT):
        below[:] = [name for name in below if not name.endswith(NOT_OURS)]
        found += [(Path(directory) / name).relative_to(ROOT) for name in names]
    return tuple(sorted(found))


def is_generated(path: Path) -> bool:
    """Returns whether a program makes this file from another one."""
    return "_pb2" in path.name or path.name == "requirements.lock"
