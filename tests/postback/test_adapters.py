"""Adapters: how they describe and register themselves, and that a new one needs nothing but its own module."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import grpc
import pytest
from aiohttp import web
from google.protobuf.json_format import MessageToDict

from libs.errors import Violations, from_rpc_error
from reengage.postback.v1 import adapter_pb2, claim_pb2, configuration_pb2, delivery_pb2
from reengage.postback.v1.method_pb2 import METHOD_POST
from services.postback.adapters.adapter import (
    ADAPTERS,
    Address,
    Allowed,
    Description,
    Field,
    FieldType,
    FieldValues,
    NotRenderableError,
    Option,
    Report,
    Request,
    Stamp,
    register,
)
from services.postback.macros import MASK, Values
from services.postback.model import State, Status
from services.postback.retry import Answer, Next, Verdict, Word, judge
from services.postback.validation import configured
from services.postback.wire import verdict_of
from tests.postback.conftest import Endpoint, Running, completed, configuration, purchase, until_ended

DESCRIPTION = Description(
    name="toy",
    label="Toy network",
    help="Tells a network that exists in this test alone.",
    catalogue_networks=(),
    is_claim_capable=True,
    options=frozenset(),
    max_deliveries_per_second=10,
    fields=(
        Field(name="url", type=FieldType.TEXT, label="URL", help="", required=True, max_characters=200),
        Field(name="key", type=FieldType.SECRET, label="Key", help="", required=True),
        Field(
            name="shape",
            type=FieldType.CHOICE,
            label="Shape",
            help="",
            default="ROUND",
            allowed=(Allowed(value="ROUND", label="Round"), Allowed(value="SQUARE", label="Square")),
        ),
        Field(name="loud", type=FieldType.FLAG, label="Loud", help="", default=True),
        Field(
            name="size",
            type=FieldType.NUMBER,
            label="Size",
            help="",
            default=1,
            allowed=tuple(Allowed(value=size, label=str(size)) for size in (1, 2, 3)),
        ),
        Field(name="window", type=FieldType.DURATION, label="Window", help="", default="7d"),
        Field(name="tags", type=FieldType.LIST, label="Tags", help="", max_characters=5, max_entries=2),
        Field(name="headers", type=FieldType.HEADERS, label="Headers", help="", max_entries=1),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Toy:
    """An adapter that posts its fields as JSON; the answer `mine` is a claim, `no` is none, all else a failure."""

    description: ClassVar[Description] = DESCRIPTION

    url: str
    fields: dict[str, Any]
    headers: Mapping[str, str]

    @classmethod
    def configure(cls, values: FieldValues, report: Report) -> Self:
        if values.flag("loud") and "quiet" in values.entries("tags"):
            report("tags", "NOT_ALLOWED", "a loud one is not quiet")
        fields = {
            "shape": values.text("shape"),
            "loud": values.flag("loud"),
            "size": values.number("size"),
            "window_us": values.number("window"),
            "tags": list(values.entries("tags")),
        }
        return cls(url=values.text("url"), fields=fields, headers=values.headers("headers"))

    @property
    def method(self) -> Literal["POST"]:
        return "POST"

    @property
    def address(self) -> Address:
        return Address(field_name="url", start=self.url)

    @property
    def secret_names(self) -> frozenset[str]:
        return DESCRIPTION.secret_names

    @property
    def san_account_id(self) -> str:
        return ""

    def requests(self, values: Values, secrets: Mapping[str, str], stamp: Stamp) -> tuple[Request, Request]:
        if not values.get("idfa"):
            raise NotRenderableError("no IDFA")
        body = json.dumps({**self.fields, "event": values.get("event_name")})
        request, shown = (
            Request(method="POST", url=self.url, headers={**self.headers, "X-Key": key}, body=body)
            for key in (secrets["key"], MASK)
        )
        return request, shown

    def judge(self, answer: Answer) -> Verdict:
        verdict = judge(answer)
        if verdict.next is Next.DONE and answer.body not in ("mine", "no"):
            return Verdict(word=Word.BODY_MISMATCH, next=Next.GIVE_UP)
        return verdict

    def claim(self, body: str) -> claim_pb2.Claim | None:
        return claim_pb2.Claim(campaign_name="toys") if body == "mine" else None


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    register(Toy)
    yield
    del ADAPTERS["toy"]


async def test_a_network_that_is_one_class_is_configured_asked_told_and_answers(
    service: Running, endpoint: Endpoint
) -> None:
    async def mine(request: web.Request) -> web.Response:
        return web.Response(text="mine")

    endpoint.answers["/toy"] = mine
    created = await service.configure(
        configuration_id="k",
        network_id="toys",
        toy={"url": endpoint.url("/toy"), "size": 2, "window": "24h", "tags": ["a", "b"], "headers": {"X-Toy": "1"}},
        secrets={"key": "hush"},
    )
    assert MessageToDict(created.adapter_fields) == {
        "url": endpoint.url("/toy"),
        "shape": "ROUND",
        "loud": True,
        "size": 2,
        "window": "1d",
        "tags": ["a", "b"],
        "headers": {"X-Toy": "1"},
    }
    assert list(created.secret_names) == ["key"]

    preview = await service.configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k"))
    assert (preview.method, preview.url, preview.headers["X-Key"]) == (METHOD_POST, endpoint.url("/toy"), MASK)
    assert json.loads(preview.body) == {
        "shape": "ROUND",
        "loud": True,
        "size": 2,
        "window_us": 86_400_000_000,
        "tags": ["a", "b"],
        "event": "Purchase",
    }

    conversion = purchase()
    conversion.record.device_ids["idfa"] = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
    asked = claim_pb2.RequestClaimsRequest(conversions=[conversion])
    asked.wait.FromSeconds(10)
    (claims,) = (await service.deliveries.RequestClaims(asked)).conversions
    (answer,) = claims.answers
    assert (answer.network_id, answer.state) == ("toys", claim_pb2.ClaimAnswer.STATE_CLAIMED)
    assert answer.claim.campaign_name == "toys"
    assert await service.enqueue(conversion) == 0, "the request is also the postback"
    (received,) = endpoint.at("/toy")
    assert (received.headers["X-Key"], received.headers["X-Toy"]) == ("hush", "1")
    (attempt,) = (await service.only()).attempts
    assert attempt.verdict == delivery_pb2.Attempt.VERDICT_DELIVERED
    assert "hush" not in str(attempt)


@pytest.mark.parametrize(
    ("body", "state"),
    [
        pytest.param("no", claim_pb2.ClaimAnswer.STATE_NOT_CLAIMED, id="no claim"),
        pytest.param("what?", claim_pb2.ClaimAnswer.STATE_UNAVAILABLE, id="no success by its own rule"),
    ],
)
async def test_its_own_rule_says_what_a_success_is(
    service: Running, endpoint: Endpoint, body: str, state: claim_pb2.ClaimAnswer.State.ValueType
) -> None:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text=body)

    endpoint.answers["/toy"] = handle
    await service.configure(toy={"url": endpoint.url("/toy")}, secrets={"key": "hush"})
    conversion = purchase()
    conversion.record.device_ids["idfa"] = "6D92078A-8246-4BA4-AE5B-76104861E7DC"
    asked = claim_pb2.RequestClaimsRequest(conversions=[conversion])
    asked.wait.FromSeconds(10)
    (claims,) = (await service.deliveries.RequestClaims(asked)).conversions
    assert [answer.state for answer in claims.answers] == [state]


async def test_what_it_cannot_render_is_refused_and_a_preview_says_why(service: Running, endpoint: Endpoint) -> None:
    await service.configure(configuration_id="k", toy={"url": endpoint.url("/toy")}, secrets={"key": "hush"})
    assert await service.enqueue(purchase()) == 1
    (refused,) = await until_ended(service)
    assert refused.state == delivery_pb2.Delivery.STATE_REFUSED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configs.Preview(configuration_pb2.PreviewRequest(configuration_id="k", conversion=purchase()))
    details = from_rpc_error(caught.value)
    assert (details.code, details.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "NOT_RENDERED")


def wrong(**fields: Any) -> list[tuple[str, str]]:
    """Returns the fields of a toy that are found wrong, with the reasons."""
    violations = Violations()
    configured(completed(configuration(toy={"url": "https://a.example/", **fields})), violations)
    return [(one.field.removeprefix("configuration.adapter_fields."), one.reason) for one in violations.found]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"url": ""}, [("url", "REQUIRED")], id="an empty text is not given"),
        pytest.param({"url": None}, [("url", "REQUIRED")], id="nor is null"),
        pytest.param({"url": 1}, [("url", "INVALID_TYPE")], id="no text"),
        pytest.param({"url": "a\0"}, [("url", "INVALID_TEXT")], id="NUL"),
        pytest.param({"url": "x" * 201}, [("url", "TOO_LONG")], id="long text"),
        pytest.param({"shape": "OVAL"}, [("shape", "NOT_ALLOWED")], id="no such choice"),
        pytest.param({"loud": "yes"}, [("loud", "INVALID_TYPE")], id="no flag"),
        pytest.param({"size": 1.5}, [("size", "INVALID_TYPE")], id="no whole number"),
        pytest.param({"size": 1e300}, [("size", "INVALID_TYPE")], id="no number that a double holds"),
        pytest.param({"size": "1"}, [("size", "INVALID_TYPE")], id="no number"),
        pytest.param({"size": 4}, [("size", "NOT_ALLOWED")], id="no such number"),
        pytest.param({"window": "a week"}, [("window", "INVALID_TYPE")], id="no duration"),
        pytest.param({"window": 7}, [("window", "INVALID_TYPE")], id="a number is no duration"),
        pytest.param({"tags": "a"}, [("tags", "INVALID_TYPE")], id="no list"),
        pytest.param({"tags": ["a", 1]}, [("tags", "INVALID_TYPE")], id="no list of texts"),
        pytest.param({"tags": ["a", "b", "c"]}, [("tags", "TOO_MANY")], id="long list"),
        pytest.param({"tags": ["abcdef"]}, [("tags", "TOO_LONG")], id="long entry"),
        pytest.param({"headers": {"a": 1}}, [("headers", "INVALID_TYPE")], id="no texts by name"),
        pytest.param({"headers": {"a": "1", "b": "2"}}, [("headers", "TOO_MANY")], id="many headers"),
        pytest.param({"key": "hush"}, [("key", "SECRET")], id="a secret among the fields"),
        pytest.param({"weight": 1}, [("weight", "UNKNOWN_FIELD")], id="no such field"),
        pytest.param({"tags": ["quiet"]}, [("tags", "NOT_ALLOWED")], id="its own rule"),
        pytest.param({"tags": ["quiet"], "loud": False}, [], id="its own rule kept"),
        pytest.param(
            {"shape": 1, "size": 9, "colour": "red"},
            [("colour", "UNKNOWN_FIELD"), ("shape", "INVALID_TYPE"), ("size", "NOT_ALLOWED")],
            id="all at once",
        ),
    ],
)
def test_its_description_says_what_its_fields_may_be(fields: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert wrong(**fields) == expected


@pytest.mark.parametrize("field", ["delivery_delay", "delivery_method", "clicks_only", "deliveries_per_second"])
async def test_its_description_says_which_options_it_takes(service: Running, field: str) -> None:
    values: dict[str, Any] = {
        "delivery_delay": {"seconds": 30},
        "delivery_method": configuration_pb2.Configuration.DELIVERY_METHOD_NETWORK_ONLY,
        "clicks_only": True,
        "deliveries_per_second": 11,
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configure(toy={"url": "https://a.example/"}, secrets={"key": "k"}, **{field: values[field]})
    assert [one.field for one in from_rpc_error(caught.value).violations] == [f"configuration.{field}"]


async def test_adapters_are_described_for_whoever_fills_in_a_form(service: Running) -> None:
    response = await service.configs.DescribeAdapters(adapter_pb2.DescribeAdaptersRequest())
    assert [one.name for one in response.adapters] == ["template", "toy", "x"]
    only = await service.configs.DescribeAdapters(adapter_pb2.DescribeAdaptersRequest(adapter="toy"))
    (described,) = only.adapters
    assert described == response.adapters[1]
    assert (described.claim_capable, list(described.options), described.max_deliveries_per_second) == (True, [], 10)
    fields = {field.name: field for field in described.fields}
    assert list(fields) == ["url", "key", "shape", "loud", "size", "window", "tags", "headers"]
    assert fields["url"].required
    assert not fields["url"].HasField("default")
    assert fields["key"].type == adapter_pb2.AdapterField.TYPE_SECRET
    assert [one.label for one in fields["shape"].allowed_values] == ["Round", "Square"]
    defaults = {name: MessageToDict(field.default) for name, field in fields.items() if field.HasField("default")}
    assert defaults == {"shape": "ROUND", "loud": True, "size": 1, "window": "7d"}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await service.configs.DescribeAdapters(adapter_pb2.DescribeAdaptersRequest(adapter="none"))
    assert from_rpc_error(caught.value).reason == "ADAPTER_NOT_FOUND"


async def test_a_configuration_of_an_adapter_that_this_release_lacks_stays_and_stops_nobody(
    service: Running, endpoint: Endpoint
) -> None:
    """A newer release has written it."""
    await service.configure(configuration_id="k", template={"url": endpoint.url("/x")})
    await service.configure(configuration_id="newer", toy={"url": endpoint.url("/toy")}, secrets={"key": "hush"})
    await service.pool.execute(
        """
        UPDATE configurations
        SET settings = jsonb_set(settings, '{adapter}', '"newer"'), revision = revision + 1
        WHERE configuration_id = 'newer'
        """
    )
    await service.configurations.refresh()
    assert service.configurations.get("newer") is None
    assert await service.enqueue(purchase()) == 1
    await until_ended(service)
    request = configuration_pb2.GetConfigurationRequest(configuration_id="newer")
    assert (await service.configs.GetConfiguration(request)).configuration.adapter == "newer"


def test_two_adapters_may_not_have_one_name() -> None:
    with pytest.raises(ValueError, match="toy"):
        register(Toy)


def test_a_claim_capable_adapter_takes_no_options() -> None:
    class Choosy(Toy):
        description: ClassVar[Description] = replace(
            DESCRIPTION, name="choosy", options=frozenset({Option.CLICKS_ONLY})
        )

    with pytest.raises(ValueError, match="choosy"):
        register(Choosy)


def test_the_catalogue_asks_for_the_secrets_that_adapters_need() -> None:
    catalogue = json.loads((Path(__file__).parents[2] / "services" / "tracker" / "catalogue.json").read_text())
    needs = {entry["id"]: {need["name"] for need in entry["needs"] if need.get("secret")} for entry in catalogue}
    asked = {
        network: adapter.description.secret_names
        for adapter in ADAPTERS.values()
        for network in adapter.description.catalogue_networks
    }
    assert asked
    assert {network: needs[network] for network in asked} == asked


@pytest.mark.parametrize(
    ("enum", "messages"),
    [
        pytest.param(State, delivery_pb2.Delivery.State, id="State"),
        pytest.param(Status, configuration_pb2.Configuration.Status, id="Status"),
        pytest.param(FieldType, adapter_pb2.AdapterField.Type, id="FieldType"),
        pytest.param(Option, adapter_pb2.Adapter.Option, id="Option"),
    ],
)
def test_enums_have_the_numbers_of_the_protos(enum: Any, messages: Any) -> None:
    prefix = messages.DESCRIPTOR.values[0].name.removesuffix("UNSPECIFIED")
    assert {f"{prefix}{one.name}": one.value for one in enum} == dict(messages.items()[1:])


def test_every_verdict_has_a_number() -> None:
    assert {verdict_of(word) for word in Word} == set(delivery_pb2.Attempt.Verdict.values()) - {0}
