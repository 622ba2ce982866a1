"""Disks of a few kilobytes, which really fill up."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(directory: Path, size_bytes: int) -> Iterator[Path]:
    """Yields a directory that is a file system of this size. Skips the test where nobody lets us mount one."""
    mount = shutil.which("mount")
    directory.mkdir()
    if mount is None or not _is_done(mount, "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory)):
        pytest.skip("a file system cannot be mounted here: that takes root")
    try:
        yield directory
    finally:
        assert _is_done("umount", "--lazy", str(directory))


@contextmanager
def without_permission(directory: Path) -> Iterator[None]:
    """Lets this process neither read nor write in a directory. Root, whom no mode stops, is nobody for so long."""
    mode, user = directory.stat().st_mode, os.geteuid()
    directory.chmod(0)
    if user == 0:
        os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(mode)


def _is_done(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
