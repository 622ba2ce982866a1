"""Secrets at rest: encrypted under keys that can be rotated."""

import json

from cryptography.fernet import Fernet, InvalidToken, MultiFernet


class Vault:
    """Keys that secrets are encrypted with: by the first of them, and read by any. Fernet keys, comma-separated.

    To rotate, put the new key first and keep the old ones; each update of a configuration's secrets encrypts them anew.
    """

    def __init__(self, keys: str) -> None:
        """Raises ValueError when a key is none; the message does not hold it."""
        try:
            self._fernet = MultiFernet([Fernet(key.strip()) for key in keys.split(",")])
        except ValueError:
            raise ValueError("REENGAGE_SECRETS_KEYS must hold Fernet keys: 32 bytes, url-safe base64") from None

    def seal(self, secrets: dict[str, str]) -> bytes:
        """Returns names and values encrypted as one."""
        return self._fernet.encrypt(json.dumps(secrets).encode())

    def open(self, sealed: bytes) -> dict[str, str]:
        """Returns what was sealed. Raises ValueError when none of the keys fits."""
        try:
            opened: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        except InvalidToken:
            raise ValueError("stored secrets fit none of the keys in REENGAGE_SECRETS_KEYS") from None
        return opened
