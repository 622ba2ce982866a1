"""`python -m deploy.local.audit`: known vulnerabilities of what requirements.lock pins. Part of `make check`.

They are asked of the package index. Where it does not answer, or does not tell of any, the audit is skipped, and the
last line says why.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

LOCK = Path("requirements.lock")
SKIPPED = 77
"""The exit code that says so, as of other tools."""
_COMMAND = (
    sys.executable,
    "-m",
    "pip_audit",
    "--disable-pip",
    "--format=json",
    "--progress-spinner=off",
    "--timeout=10",
)


class UnansweredError(Exception):
    """The index tells nothing; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The outcome of an audit: a line for each vulnerability, and the packages that nothing is known of."""

    vulnerabilities: tuple[str, ...]
    unknown: tuple[str, ...]


def main() -> int:
    """Writes the outcome; returns 0, 1 where something is known, and SKIPPED where nobody answers."""
    try:
        # One package first: an index that does not know it is not asked for a hundred.
        audit(first_of(LOCK.read_text()))
        found = audit(LOCK.read_text())
    except UnansweredError as error:
        sys.stdout.write(f"skipped: {error}\n")
        return SKIPPED
    for line in (*found.vulnerabilities, f"not audited: {', '.join(found.unknown) or 'none'}"):
        sys.stdout.write(f"{line}\n")
    return 1 if found.vulnerabilities else 0


def first_of(lock: str) -> str:
    """Returns the part of a lock that is about its first package."""
    lines = lock.splitlines()
    rest = takewhile(lambda line: line.startswith(" "), lines[1:])
    return "\n".join([lines[0], *rest])


def audit(requirements: str) -> Found:
    """Returns what the index tells of requirements. Raises UnansweredError."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        done = subprocess.run([*_COMMAND, "--requirement", file.name], capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise UnansweredError(f"no answer from the index ({lines[-1][:200]})")
    return outcome(json.loads(done.stdout)["dependencies"])


def outcome(dependencies: Iterable[dict[str, Any]]) -> Found:
    """Returns what a report says. Raises UnansweredError where it says nothing of any package."""
    packages = list(dependencies)
    unknown = [one for one in packages if "skip_reason" in one]
    if len(unknown) == len(packages):
        raise UnansweredError(unknown[0]["skip_reason"] if unknown else "the report names no package")
    return Found(
        vulnerabilities=tuple(
            f"{one['name']} {one['version']}: {known['id']}, mended in {', '.join(known['fix_versions']) or 'none yet'}"
            for one in packages
            for known in one.get("vulns", ())
        ),
        unknown=tuple(one["name"] for one in unknown),
    )


if __name__ == "__main__":
    sys.exit(main())
