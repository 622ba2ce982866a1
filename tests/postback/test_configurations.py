"""Configurations: create, read, change, archive, preview; and their secrets, which nobody sees again."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from aiohttp import web
from cryptography.fernet import Fernet
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from deploy.local.x_network import SECRETS
from libs.errors import from_rpc_error
from libs.vault import Vault
from reengage.postback.v1 import configuration_pb2
from reengage.postback.v1.method_pb2 import METHOD_POST
from services.postback.configurations import POLL_INTERVAL_S
from services.postback.macros import MACROS
from tests.conftest import Database
from tests.postback.conftest import KEY, Endpoint, Running, configuration, purchase, running, until_ended
from tests.support.eventually import eventually

Configuration = configuration_pb2.Configuration
TEMPLATE = {"url": "https://partner.example/{click_id}"}


async def refused(call: Any) -> tuple[grpc.StatusCode, str, set[str]]:
    """Returns status, reason and wrong fields of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    details = from_rpc_error(caught.value)
    return details.code, details.reason, {f"{found.field} {found.reason}" for found in details.violations}


async def update(service: Running, paths: list[str], **fields: Any) -> Configuration:
    request = configuration_pb2.UpdateConfigurationRequest(
        configuration=Configuration(**fields), update_mask=FieldMask(paths=paths)
    )
    return (await service.configs.UpdateConfiguration(request)).configuration


async def get(service: Running, configuration_id: str) -> Configuration:
    request = configuration_pb2.GetConfigurationRequest(configuration_id=configuration_id)
    return (await service.configs.GetConfiguration(request)).configuration


async def test_defaults(service: Running) -> None:
    created = await service.configure(template=TEMPLATE)
    assert created.configuration_id
    assert created.status == Configuration.STATUS_LIVE
    assert created.delivery_method == Configuration.DELIVERY_METHOD_ALL
    assert dict(created.adapter_fields) == {"method": "GET", **TEMPLATE}
    assert created.retry_attempts == 3
    assert created.attempt_timeout.ToSeconds() == 5
    assert created.delivery_delay.ToSeconds() == 0
    assert created.create_time.ToNanoseconds() == created.update_time.ToNanoseconds() > 0
    assert await get(service, created.configuration_id) == created


CREATED = {"configuration_id": "k", "template": TEMPLATE, "secrets": {"a": "b"}, "retry_attempts": 0}


async def test_create_is_repeat_safe(service: Running) -> None:
    created = await service.configure(**CREATED)
    assert created.retry_attempts == 0
    assert await service.configure(**CREATED) == created


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"secrets": {"a": "c"}}, id="a secret"),
        pytest.param({"retry_attempts": 1}, id="a field"),
        pytest.param({"template": {"url": "https://other.example/"}}, id="a field of the adapter"),
        pytest.param({"app_id": "other"}, id="the app"),
    ],
)
async def test_an_id_is_taken_by_other_content(service: Running, change: dict[str, Any]) -> None:
    await service.configure(**CREATED)
    code, reason, _ = await refused(service.configure(**{**CREATED, **change}))
    assert (code, reason) == (grpc.StatusCode.ALREADY_EXISTS, "CONFIGURATION_EXISTS")


async def test_every_wrong_field_is_named_at_once(service: Running) -> None:
    code, _, fields = await refused(
        service.configure(
            configuration_id="no spaces",
            app_id="",
            network_id="",
            trigger="x" * 129,
            status=Configuration.STATUS_ARCHIVED,
            template={"url": "https://{network}/{secret.none}", "headers": {"Host": "x"}, "body": "x"},
            delivery_delay=Duration(seconds=31),
            retry_attempts=11,
            attempt_timeout=Duration(nanos=999_999_999),
            deliveries_per_second=-1,
            allowed_countries=["DE", "at"],
            blocked_countries=["FR"],
            secrets={"no dot.": "x", "empty": ""},
        )
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {
        "configuration.configuration_id INVALID_ID",
        "configuration.app_id REQUIRED",
        "configuration.network_id REQUIRED",
        "configuration.trigger TOO_LONG",
        "configuration.status NOT_ALLOWED",
        "configuration.delivery_delay NOT_ALLOWED",
        "configuration.retry_attempts OUT_OF_RANGE",
        "configuration.attempt_timeout OUT_OF_RANGE",
        "configuration.deliveries_per_second OUT_OF_RANGE",
        "configuration.allowed_countries[1] UNKNOWN_VALUE",
        "configuration.blocked_countries NOT_ALLOWED",
        "configuration.secrets INVALID_NAME",
        "configuration.secrets.empty INVALID_VALUE",
        "configuration.secrets.none REQUIRED",
        "configuration.adapter_fields.url INVALID_URL",
        "configuration.adapter_fields.body NOT_ALLOWED",
        "configuration.adapter_fields.headers[Host] INVALID_NAME",
    }


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://[::1]/", "https://a.example:22/", "http://localhost/", "http://0x7f.1/{ip_address}"],
)
async def test_forbidden_addresses_are_refused_at_once_with_the_remedy(service: Running, url: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configure(template={"url": url})
    (found,) = from_rpc_error(caught.value).violations
    assert (found.field, found.reason) == ("configuration.adapter_fields.url", "ADDRESS_FORBIDDEN")
    assert "REENGAGE_ALLOWED_HOSTS" in found.description


@pytest.mark.parametrize("url", ["", "https://a.example:x/", "ftp://a.example/"])
async def test_a_wrong_url_is_named_once(service: Running, url: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configure(template={"url": url})
    (found,) = from_rpc_error(caught.value).violations
    assert (found.field, found.reason) == ("configuration.adapter_fields.url", "INVALID_URL" if url else "REQUIRED")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(
            pytest.param("delivery_delay", Duration(seconds=s), id=f"{s} s delay")
            for s in (0, 30, 60, 120, 180, 300, 600)
        ),
        pytest.param("retry_attempts", 0, id="no retry"),
        pytest.param("retry_attempts", 10, id="10 retries"),
        pytest.param("attempt_timeout", Duration(seconds=1), id="1 s"),
        pytest.param("attempt_timeout", Duration(seconds=30), id="30 s"),
        pytest.param("deliveries_per_second", 0, id="no limit"),
        pytest.param("deliveries_per_second", 100_000, id="100,000 a second"),
        pytest.param("trigger", "_install", id="the install"),
        pytest.param("trigger", "x" * 128, id="128 characters"),
    ],
)
async def test_values_that_are_just_taken(service: Running, field: str, value: Any) -> None:
    assert getattr(await service.configure(template=TEMPLATE, **{field: value}), field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("delivery_delay", Duration(seconds=29), id="29 s delay"),
        pytest.param("delivery_delay", Duration(seconds=30, nanos=1), id="30 s and a bit"),
        pytest.param("retry_attempts", -1, id="-1 retries"),
        pytest.param("retry_attempts", 11, id="11 retries"),
        pytest.param("attempt_timeout", Duration(), id="no time"),
        pytest.param("attempt_timeout", Duration(seconds=30, nanos=1), id="over 30 s"),
        pytest.param("deliveries_per_second", -1, id="-1 a second"),
        pytest.param("deliveries_per_second", 100_001, id="100,001 a second"),
        pytest.param("trigger", "", id="no trigger"),
        pytest.param("trigger", "a\0b", id="NUL"),
    ],
)
async def test_values_that_are_just_refused(service: Running, field: str, value: Any) -> None:
    _, _, fields = await refused(service.configure(template=TEMPLATE, **{field: value}))
    assert [found.partition(" ")[0] for found in fields] == [f"configuration.{field}"]


async def test_update_changes_what_the_mask_names(service: Running) -> None:
    created = await service.configure(configuration_id="k", template=TEMPLATE, retry_attempts=7, is_revenue=True)
    changed = await update(
        service,
        ["adapter_fields.url", "retry_attempts", "is_revenue"],
        configuration_id="k",
        adapter_fields={"url": "https://other.example/"},
        clicks_only=True,
    )
    assert changed.adapter_fields["url"] == "https://other.example/"
    assert changed.adapter_fields["method"] == created.adapter_fields["method"]
    assert changed.retry_attempts == 3  # named and not set: cleared, so the default
    assert not changed.is_revenue
    assert not changed.clicks_only
    assert changed.update_time.ToNanoseconds() > created.update_time.ToNanoseconds()
    assert await get(service, "k") == changed


async def test_updates_that_are_refused(service: Running) -> None:
    await service.configure(configuration_id="k", template=TEMPLATE)
    code, _, fields = await refused(
        update(service, ["app_id", "secret_names", "nothing", "adapter_fields.nothing"], configuration_id="k")
    )
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert fields == {"update_mask IMMUTABLE", "update_mask UNKNOWN_FIELD"}
    _, _, fields = await refused(update(service, [], configuration_id="k"))
    assert fields == {"update_mask REQUIRED"}
    _, _, fields = await refused(update(service, ["adapter"], configuration_id="k"))
    assert fields == {"configuration.adapter REQUIRED"}
    code, reason, _ = await refused(update(service, ["clicks_only"], configuration_id="none"))
    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "CONFIGURATION_NOT_FOUND")
    archive = configuration_pb2.ArchiveConfigurationRequest(configuration_id="k")
    archived = await service.configs.ArchiveConfiguration(archive)
    assert archived.configuration.status == Configuration.STATUS_ARCHIVED
    assert await service.configs.ArchiveConfiguration(archive) == configuration_pb2.ArchiveConfigurationResponse(
        configuration=archived.configuration
    )
    code, reason, _ = await refused(update(service, ["clicks_only"], configuration_id="k"))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CONFIGURATION_ARCHIVED")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"retry_attempts": 3}, [], id="the default that it has"),
        pytest.param({"retry_attempts": 4}, ["retry_attempts"], id="a field"),
        pytest.param(
            {"adapter_fields": {"url": "https://b.example/?{secret.a}", "method": "GET"}},
            ["adapter_fields.url"],
            id="a field of the adapter",
        ),
        pytest.param({"secrets": {"a": "1"}}, [], id="the secret that it has"),
        pytest.param({"secrets": {"a": "2", "b": "1"}}, ["secrets.a", "secrets.b"], id="secrets"),
        pytest.param(
            {"clicks_only": True, "status": Configuration.STATUS_PAUSED}, ["clicks_only", "status"], id="several"
        ),
    ],
)
async def test_an_update_says_what_it_changes_and_does_so_only_when_it_is_meant(
    service: Running, change: dict[str, Any], changed: list[str]
) -> None:
    template = {"url": "https://a.example/?{secret.a}"}
    created = await service.configure(configuration_id="k", template=template, secrets={"a": "1"})
    request = configuration_pb2.UpdateConfigurationRequest(
        configuration=Configuration(configuration_id="k", **change),
        update_mask=FieldMask(paths=list(change) or ["retry_attempts"]),
        validate_only=True,
    )
    would_be = await service.configs.UpdateConfiguration(request)
    assert list(would_be.changed_fields) == changed
    assert await get(service, "k") == created, "nothing is stored"
    request.validate_only = False
    updated = await service.configs.UpdateConfiguration(request)
    assert list(updated.changed_fields) == changed
    assert (updated.configuration.update_time == created.update_time) == (not changed)
    assert await get(service, "k") == updated.configuration
    would_be.configuration.update_time.CopyFrom(updated.configuration.update_time)
    assert would_be.configuration == updated.configuration
    assert list((await service.configs.UpdateConfiguration(request)).changed_fields) == [], "a repeat changes nothing"


async def test_a_creation_can_be_tried(service: Running) -> None:
    wanted = configuration(configuration_id="k", template=TEMPLATE)
    request = configuration_pb2.CreateConfigurationRequest(configuration=wanted, validate_only=True)
    tried = await service.configs.CreateConfiguration(request)
    assert tried.created
    assert (await refused(get(service, "k")))[1] == "CONFIGURATION_NOT_FOUND"
    request.validate_only = False
    created = await service.configs.CreateConfiguration(request)
    assert created.created
    assert dict(tried.configuration.adapter_fields) == dict(created.configuration.adapter_fields)
    request.validate_only = True
    repeated = await service.configs.CreateConfiguration(request)
    assert (repeated.created, repeated.configuration) == (False, created.configuration)
    request.configuration.clicks_only = True
    assert (await refused(service.configs.CreateConfiguration(request)))[1] == "CONFIGURATION_EXISTS"
    request.configuration.configuration_id, request.configuration.adapter = "other", "none"
    code, _, fields = await refused(service.configs.CreateConfiguration(request))
    assert (code, fields) == (grpc.StatusCode.INVALID_ARGUMENT, {"configuration.adapter NOT_ALLOWED"})


async def test_one_field_of_the_adapter_and_one_secret_change_alone(service: Running) -> None:
    template = {"url": "https://a.example/?{secret.a}", "default_value": "none"}
    await service.configure(configuration_id="k", template=template, secrets={"a": "1", "b": "2"})
    changed = await update(
        service,
        ["adapter_fields.url", "adapter_fields.default_value", "secrets.a", "secrets.b"],
        configuration_id="k",
        adapter_fields={"url": "https://b.example/?{secret.a}"},
        secrets={"a": "3"},
    )
    assert dict(changed.adapter_fields) == {"method": "GET", "url": "https://b.example/?{secret.a}"}
    assert list(changed.secret_names) == ["a"]
    known = service.configurations.get("k")
    assert known is not None
    assert known.secrets == {"a": "3"}


async def test_another_adapter_comes_with_its_fields(service: Running) -> None:
    await service.configure(configuration_id="k", template=TEMPLATE)
    _, _, fields = await refused(update(service, ["adapter"], configuration_id="k", adapter="x"))
    assert "configuration.adapter_fields.url UNKNOWN_FIELD" in fields
    changed = await update(
        service,
        ["adapter", "adapter_fields", "secrets"],
        configuration_id="k",
        adapter="x",
        adapter_fields={"app_id": "1", "conversion_type": "PURCHASE"},
        secrets=SECRETS,
    )
    assert (changed.adapter, changed.adapter_fields["letter_case"]) == ("x", "LOWER")


async def test_lists_by_id_without_the_archived(service: Running) -> None:
    for name in "dbeac":
        await service.configure(configuration_id=name, template=TEMPLATE)
    await service.configure(configuration_id="z", app_id="other", template=TEMPLATE)
    await service.configs.ArchiveConfiguration(configuration_pb2.ArchiveConfigurationRequest(configuration_id="c"))

    async def pages(**fields: Any) -> list[list[str]]:
        request = configuration_pb2.ListConfigurationsRequest(app_id="app", page_size=2, **fields)
        found = []
        while True:
            page = await service.configs.ListConfigurations(request)
            found.append([one.configuration_id for one in page.configurations])
            request.page_token = page.next_page_token
            if not request.page_token:
                return found

    assert await pages() == [["a", "b"], ["d", "e"]]
    assert await pages(show_archived=True) == [["a", "b"], ["c", "d"], ["e"]]


async def test_preview_fills_every_macro_of_a_sample(service: Running) -> None:
    filled = sorted(set(MACROS) - {"impression_id"})
    body = json.dumps({name: f"{{{name}}}" for name in [*filled, *(f"cp_{n}" for n in range(10))]})
    await service.configure(
        configuration_id="k",
        template={"method": "POST", "url": "https://a.example/{nothing}?t={secret.token}", "body": body},
        is_revenue=True,
        secrets={"token": "very secret"},
    )
    request = configuration_pb2.PreviewRequest(configuration_id="k")
    preview = await service.configs.Preview(request)
    assert (preview.method, preview.url) == (METHOD_POST, "https://a.example/?t=_masked_")
    assert list(preview.unmatched_macros) == ["nothing"]
    assert all(json.loads(preview.body).values())
    assert preview.headers["Idempotency-Key"] == json.loads(preview.body)["delivery_id"]
    given = await service.configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k", conversion=purchase()))
    assert json.loads(given.body)["click_id"] == "their click"
    assert await service.list() == []


async def test_other_processes_hear_of_changes(database: Database, tmp_path: Path, endpoint: Endpoint) -> None:
    async with (
        running(database, tmp_path / "one.sock", allowed=endpoint.host) as one,
        running(database, tmp_path / "two.sock", allowed=endpoint.host) as two,
    ):
        await one.configure(configuration_id="k", template={"url": endpoint.url("/x")})

        async def known() -> bool:
            return two.configurations.get("k") is not None

        await eventually(known, within_s=POLL_INTERVAL_S * 10)
        assert await two.enqueue(purchase()) == 1
        assert await one.enqueue(purchase()) == 0
        await until_ended(one)
        assert len(endpoint.received) == 1


async def test_secrets_are_seen_by_the_endpoint_and_nobody_else(
    service: Running, endpoint: Endpoint, database: Database
) -> None:
    secret, forms = 'to/ken "x"', ['to/ken "x"', "to%2Fken%20%22x%22", 'to/ken \\"x\\"']

    async def echo(request: web.Request) -> web.Response:
        text = f"{request.raw_path} {request.headers['Authorization']} {await request.text()}"
        # The last one is cut in two where the kept part ends.
        text += secret.rjust(4096 - len(text) + 4, "x")
        return web.Response(text=text, headers={"X-Echo": request.headers["Authorization"]})

    endpoint.answers["/x"] = echo
    await service.configure(
        configuration_id="k",
        template={
            "method": "POST",
            "url": endpoint.url("/x?t={secret.token}"),
            "headers": {"Authorization": "Bearer {secret.token}"},
            "body": '{"t": "{secret.token}"}',
        },
        secrets={"token": secret},
    )
    await service.enqueue(purchase())
    await until_ended(service)
    (received,) = endpoint.received
    assert received.query == {"t": secret}
    assert received.headers["Authorization"] == f"Bearer {secret}"
    assert json.loads(received.body) == {"t": secret}

    configuration = await get(service, "k")
    assert (dict(configuration.secrets), list(configuration.secret_names)) == ({}, ["token"])
    delivery = await service.only()
    assert delivery.attempts[0].url == endpoint.url("/x?t=_masked_")
    assert delivery.attempts[0].response_body.startswith('/x?t=_masked_ Bearer _masked_ {"t": "_masked_"}xxx')
    listed = await service.configs.ListConfigurations(configuration_pb2.ListConfigurationsRequest(app_id="app"))
    preview = await service.configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k"))
    shown = [str(configuration), str(delivery), str(listed), str(preview), await dump(database)]
    for place in shown:
        assert not [form for form in forms if form in place.replace("\\'", "'")]
        assert "to/ken" not in place
        assert "to%2F" not in place


async def dump(database: Database) -> str:
    """Returns everything in the schema, as text."""
    connection = await asyncpg.connect(database.admin_dsn)
    try:
        tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'postback'")
        rows = [await connection.fetch(f"SELECT * FROM postback.{table['tablename']}") for table in tables]
        return "\n".join(str(value) for found in rows for row in found for value in row.values())
    finally:
        await connection.close()


async def test_secrets_are_replaced_as_one_and_kept_otherwise(service: Running) -> None:
    template = {"url": "https://a.example/?a={secret.a}"}
    await service.configure(configuration_id="k", template=template, secrets={"a": "1", "b": "2"})
    changed = await update(service, ["clicks_only"], configuration_id="k", clicks_only=True)
    assert list(changed.secret_names) == ["a", "b"]
    changed = await update(service, ["secrets"], configuration_id="k", secrets={"a": "3"})
    assert list(changed.secret_names) == ["a"]
    _, _, fields = await refused(update(service, ["secrets"], configuration_id="k"))
    assert fields == {"configuration.secrets.a REQUIRED"}


async def test_keys_are_rotated(database: Database, tmp_path: Path, service: Running) -> None:
    template = {"url": "https://a.example/?a={secret.a}"}
    await service.configure(configuration_id="k", template=template, secrets={"a": "1"})
    new = Fernet.generate_key().decode()
    async with running(database, tmp_path / "new.sock", keys=f"{new},{KEY}") as rotated:
        await update(rotated, ["secrets"], configuration_id="k", secrets={"a": "2"})
    async with running(database, tmp_path / "newest.sock", keys=new) as rotated:
        configuration = rotated.configurations.get("k")
        assert configuration is not None
        assert configuration.secrets == {"a": "2"}


def test_a_vault_says_what_is_wrong_without_saying_the_key() -> None:
    with pytest.raises(ValueError, match="REENGAGE_SECRETS_KEYS") as caught:
        Vault("no key")
    assert "no key" not in str(caught.value)
    with pytest.raises(ValueError, match="none of the keys"):
        Vault(Fernet.generate_key().decode()).open(Vault(KEY).seal({"a": "b"}))
