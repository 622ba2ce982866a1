"""`make demo` gives the numbers that the sample must give, on processes and a database of its own."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.e2e
@pytest.mark.timeout(180)
def test_the_demo_holds_and_leaves_nothing(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, "-m", "deploy.local", "demo"],
        env={"PATH": "/usr/bin:/bin", "REENGAGE_DATA": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert demo.returncode == 0, demo.stdout[-4000:] + demo.stderr
    for title in ("Received", "Refused, and why", "Decided, shop-ios", "Delivered", "Explained", "numbers are what"):
        assert title in demo.stdout
    assert list(tmp_path.iterdir()) == []
