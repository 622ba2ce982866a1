"""A wrong environment is told in one sentence, and the process ends."""

import asyncio
import os
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from tests.conftest import Database
from tests.postback.conftest import KEY, running

pytestmark = pytest.mark.process
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


async def started(**environment: str) -> tuple[int | None, str]:
    """Returns the exit code of a process with these variables alone, and what it wrote."""
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("REENGAGE_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.postback", env=surroundings | environment, stderr=asyncio.subprocess.PIPE
    )
    _, written = await process.communicate()
    return process.returncode, written.decode()


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({}, "REENGAGE_DSN is missing; REENGAGE_SECRETS_KEYS is missing"),
        (
            {"REENGAGE_DSN": NOWHERE, "REENGAGE_SECRETS_KEYS": "no key"},
            "REENGAGE_SECRETS_KEYS must hold Fernet keys: 32 bytes, url-safe base64",
        ),
        (
            {"REENGAGE_DSN": NOWHERE, "REENGAGE_SECRETS_KEYS": KEY, "REENGAGE_ALLOWED_HOSTS": "http://a.example"},
            "REENGAGE_ALLOWED_HOSTS: 'http://a.example' is not host or host:port",
        ),
    ],
    ids=["nothing", "no key", "no host"],
)
@pytest.mark.slow
async def test_what_is_wrong_is_one_sentence(environment: dict[str, str], sentence: str) -> None:
    assert await started(**environment) == (1, f"{sentence}\n")


async def test_keys_that_do_not_fit_the_stored_secrets_are_one_sentence(database: Database, tmp_path: Path) -> None:
    async with running(database, tmp_path / "sock") as service:
        await service.configure(template={"url": "https://a.example/"}, secrets={"a": "b"})
    dsn, other = database.dsn("postback"), Fernet.generate_key().decode()
    code, written = await started(REENGAGE_DSN=dsn, REENGAGE_SECRETS_KEYS=other)
    assert (code, written) == (1, "stored secrets fit none of the keys in REENGAGE_SECRETS_KEYS\n")
