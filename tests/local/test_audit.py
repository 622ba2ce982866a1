"""The audit of dependencies: what is known fails, what nobody tells is skipped and says so."""

import json
import subprocess
from types import SimpleNamespace

import pytest

from deploy.local import audit

KNOWN = {
    "name": "a",
    "version": "1",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1", "2"]}, {"id": "PYSEC-2", "fix_versions": []}],
}
FINE = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def answering(monkeypatch: pytest.MonkeyPatch, *outputs: tuple[str, str]) -> None:
    given = iter(outputs)

    def run(*_: object, **__: object) -> SimpleNamespace:
        stdout, stderr = next(given)
        return SimpleNamespace(stdout=stdout, stderr=stderr)

    monkeypatch.setattr(subprocess, "run", run)


def report(*dependencies: object) -> str:
    return json.dumps({"dependencies": dependencies})


def test_what_is_known_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answering(monkeypatch, (report(FINE), ""), (report(KNOWN, FINE, UNKNOWN), ""))
    assert audit.main() == 1
    assert capsys.readouterr().out.splitlines() == [
        "a 1: PYSEC-1, mended in 1.1, 2", "a 1: PYSEC-2, mended in none yet", "not audited: c",
    ]  # fmt: skip


def test_what_is_fine_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, (report(FINE), ""), (report(FINE), ""))
    assert audit.main() == 0


@pytest.mark.parametrize(
    ("output", "why"),
    [((report(UNKNOWN), ""), "not found"), (("", "Traceback\nConnectionError: no name"), "ConnectionError: no name")],
    ids=["an index that tells nothing", "no index"],
)
def test_what_nobody_tells_is_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: tuple[str, str], why: str
) -> None:
    answering(monkeypatch, output)
    assert audit.main() == audit.SKIPPED
    said = capsys.readouterr().out
    assert said.startswith("skipped: ")
    assert why in said


def test_the_first_package_is_asked_about_alone() -> None:
    lock = audit.LOCK.read_text()
    assert audit.first_of(lock).splitlines()[0] == lock.splitlines()[0]
    assert all(line.startswith(" ") for line in audit.first_of(lock).splitlines()[1:])
