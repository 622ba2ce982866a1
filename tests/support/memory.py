"""Temporary files in memory: databases are most of what tests write, and a slow disk is most of their waiting."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import psutil

MEMORY = Path("/dev/shm")
PREFIX = "reengage-tests-"
MIN_FREE_BYTES = 4 * 1024**3


def keep_temporary_files_in_memory() -> Path | None:
    """Returns the directory that holds temporary files of this process and its children from now on.

    Returns None, and changes nothing, where TMPDIR is set or memory is short. Removes what earlier runs left.
    """
    if "TMPDIR" in os.environ or not MEMORY.is_dir() or shutil.disk_usage(MEMORY).free < MIN_FREE_BYTES:
        return None
    for old in MEMORY.glob(f"{PREFIX}*"):
        if not psutil.pid_exists(int(old.name.removeprefix(PREFIX))):
            shutil.rmtree(old, ignore_errors=True)
    directory = MEMORY / f"{PREFIX}{os.getpid()}"
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    return directory
