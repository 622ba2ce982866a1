"""Countries of addresses: from a mounted database, which may be missing, broken, or replaced."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from reengage.ingest.v1 import record_pb2
from services.ingest.countries import Countries
from tests.conftest import Database
from tests.ingest.conftest import StartIngest, click, event
from tests.support.geoip import write_geoip_database

GERMAN, FRENCH = "203.0.113.0/24", "2001:db8::/32"


@pytest.fixture
def database_file(tmp_path: Path) -> Path:
    path = tmp_path / "countries.mmdb"
    write_geoip_database(path, {GERMAN: "DE", FRENCH: "FR"})
    return path


def countries_of(path: Path | str) -> Countries:
    countries = Countries(str(path))
    countries.read()
    return countries


@pytest.mark.parametrize(
    ("ip_address", "country"),
    [
        ("203.0.113.7", "DE"),
        ("2001:db8::7", "FR"),
        ("198.51.100.7", ""),
        ("10.0.0.7", ""),
        ("", ""),
        ("none", ""),
    ],
)
def test_an_address_has_the_country_of_its_network(database_file: Path, ip_address: str, country: str) -> None:
    assert countries_of(database_file).of(ip_address) == country


def test_an_ipv6_address_is_in_no_country_of_ipv4(tmp_path: Path) -> None:
    write_geoip_database(tmp_path / "4.mmdb", {GERMAN: "DE"}, ip_version=4)
    countries = countries_of(tmp_path / "4.mmdb")
    assert (countries.of("203.0.113.7"), countries.of("2001:db8::7")) == ("DE", "")


def test_without_a_database_no_country_is_known() -> None:
    with capture_logs() as logs:
        assert countries_of("").of("203.0.113.7") == ""
    assert logs == []


def test_a_new_file_is_read_and_a_broken_one_is_said_once(database_file: Path) -> None:
    countries = countries_of(database_file)
    write_geoip_database(database_file, {GERMAN: "AT"})
    countries.read()
    assert countries.of("203.0.113.7") == "AT"
    good = database_file.read_bytes()
    with capture_logs() as logs:
        database_file.write_bytes(good[:100])
        countries.read()
        countries.read()
        database_file.unlink()
        countries.read()
    assert [log["event"] for log in logs] == ["geoip.unreadable"] * 2
    assert countries.of("203.0.113.7") == "AT"
    write_geoip_database(database_file, {GERMAN: "CH"})
    countries.read()
    assert countries.of("203.0.113.7") == "CH"


def test_a_file_that_comes_late_is_read_then(tmp_path: Path) -> None:
    countries = countries_of(tmp_path / "late.mmdb")
    assert countries.of("203.0.113.7") == ""
    write_geoip_database(tmp_path / "late.mmdb", {GERMAN: "DE"})
    countries.read()
    assert countries.of("203.0.113.7") == "DE"


async def test_every_record_that_is_accepted_has_its_country(
    start_ingest: StartIngest, database: Database, database_file: Path
) -> None:
    """Ours to say: what a sender claims is not believed, and a repeat stays one when the database was replaced."""
    async with start_ingest(database, geoip_database=str(database_file)) as ingest:
        await ingest.send(
            click(record_id="k", ip_address="203.0.113.7"),
            event(record_id="e", ip_address="2001:db8::7", country="XX"),
            event(record_id="unknown", ip_address="198.51.100.7", country="XX"),
            event("View", ip_address="203.0.113.7"),
        )
        logged = [record_pb2.Record.FromString(entry.record) for entry in await ingest.log()]
    async with start_ingest(database) as without:
        (repeat,) = await without.send(event("View", ip_address="203.0.113.7"))
    assert [record.country for record in logged] == ["DE", "FR", "", "DE"]
    assert repeat.record_id == logged[3].record_id
