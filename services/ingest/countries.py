"""The countries of addresses, from a database in MaxMind's format that an operator mounts."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import structlog
from maxminddb_rust import MODE_MEMORY, InvalidDatabaseError, Reader, open_database
from prometheus_client import Gauge

CountryOf: TypeAlias = Callable[[str], str]
"""Returns the country of an address, ISO 3166-1, two capitals; "" where it is not known."""

_COUNTRY = ("country", "iso_code")
_LOOK_INTERVAL_S = 10.0
_build_time = Gauge("ingest_geoip_build_time_seconds", "When the database of countries in use was made; 0: none is.")
_log = structlog.get_logger()


class Countries:
    """The countries as a file tells them; without a path none is known.

    While the file cannot be read, what was read before holds. It is read whole into memory, so that it may be replaced
    or written over at any time.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reader: Reader | None = None
        self._version: tuple[int, ...] = ()
        self._complaint = ""

    def of(self, ip_address: str) -> str:
        """Returns the country of an address, "" where it is not known: never one that is only likely."""
        if self._reader is None or not ip_address:
            return ""
        try:
            country = self._reader.get_path(ip_address, _COUNTRY)
        except (ValueError, InvalidDatabaseError):  # an IPv6 address in a database of IPv4; a database of other things
            return ""
        return country if isinstance(country, str) else ""

    def read(self) -> None:
        """Reads the file if it is not the one that was read before. One that cannot be read is logged, once."""
        if not self._path:
            return
        try:
            stat = Path(self._path).stat()
            version = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if version == self._version:
                return
            self._reader, self._version = open_database(self._path, MODE_MEMORY), version
        except (OSError, ValueError, InvalidDatabaseError) as error:
            if self._complaint != (complaint := f"{type(error).__name__}: {error}"):
                self._complaint = complaint
                _log.error("geoip.unreadable", path=self._path, error=complaint)
            return
        self._complaint = ""
        made = self._reader.metadata()
        _build_time.set(made.build_epoch)
        _log.info("geoip.read", database_type=made.database_type, build_epoch=made.build_epoch)

    async def follow(self) -> None:
        """Reads the file again whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_INTERVAL_S)
            await asyncio.to_thread(self.read)
