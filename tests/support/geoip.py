"""A database of countries, as an operator would mount one."""

from collections.abc import Mapping
from pathlib import Path

from mmdb_writer import MMDBWriter
from netaddr import IPSet


def write_geoip_database(path: Path, countries: Mapping[str, str], *, ip_version: int = 6) -> None:
    """Writes a database in which these networks are in these countries, and those countries' names are known."""
    writer = MMDBWriter(ip_version, "GeoLite2-Country", ipv4_compatible=ip_version == 6)
    for network, country in countries.items():
        record = {"country": {"iso_code": country, "names": {"en": country}}, "continent": {"code": "EU"}}
        writer.insert_network(IPSet([network]), record)
    new = path.with_suffix(".new")
    writer.to_db_file(str(new))
    new.replace(path)
