"""`reengage postbacks`: configurations, with the fields that the server's adapters have."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Answer, Reengage

TEMPLATE = ("network_id=acme", "trigger=Purchase", "adapter=template", "url=https://acme.example/?id={click_id}")


class Postbacks:
    """The commands, on configurations of an app of the test's own."""

    def __init__(self, app_id: str, reengage: Reengage) -> None:
        self.app_id, self.configuration_id, self._reengage = app_id, f"{app_id}-1", reengage

    def run(self, command: str, *arguments: str) -> Answer:
        return self._reengage("postbacks", command, *arguments)

    def done(self, command: str, *arguments: str) -> str:
        answer = self.run(command, *arguments)
        assert answer.code == 0, answer.err
        return answer.out

    def create(self, *fields: str) -> Any:
        ids = (f"configuration_id={self.configuration_id}", f"app_id={self.app_id}")
        return json.loads(self.done("create", *ids, *fields, "--json"))

    def held(self) -> Any:
        return json.loads(self.done("get", self.configuration_id, "--json"))


@pytest.fixture
def postbacks(request: pytest.FixtureRequest, reengage: Reengage) -> Postbacks:
    return Postbacks(request.node.name.removeprefix("test_")[:40], reengage)


def test_adapters_are_listed_with_their_fields(postbacks: Postbacks) -> None:
    listed = postbacks.done("adapters")
    assert "template" in listed
    fields = postbacks.done("adapters", "template")
    assert "url (required)" in fields
    assert postbacks.run("adapters", "none").code == 1


def test_a_configuration_is_created_shown_edited_and_archived(postbacks: Postbacks) -> None:
    made = postbacks.create(
        *TEMPLATE, "method=POST", 'body={"id": "{click_id}"}', "headers=X-A=1, X-B=2", "delivery_delay=30s"
    )
    assert made["adapter_fields"] == {
        "url": "https://acme.example/?id={click_id}",
        "method": "POST",
        "body": '{"id": "{click_id}"}',
        "headers": {"X-A": "1", "X-B": "2"},
    }
    assert postbacks.configuration_id in postbacks.done("list", postbacks.app_id)
    shown = postbacks.done("get", postbacks.configuration_id)
    assert "adapter_fields.url" in shown
    postbacks.done(
        "edit", postbacks.configuration_id, "url=https://acme.example/new", "delivery_delay=", "clicks_only=true"
    )
    held = postbacks.held()
    assert held["adapter_fields"]["url"] == "https://acme.example/new"
    assert held["adapter_fields"]["method"] == "POST"
    assert held["clicks_only"]
    postbacks.done("archive", postbacks.configuration_id)
    assert postbacks.configuration_id not in postbacks.done("list", postbacks.app_id)


def test_it_is_paused_and_resumed(postbacks: Postbacks) -> None:
    postbacks.create(*TEMPLATE)
    postbacks.done("pause", postbacks.configuration_id)
    assert postbacks.held()["status"] == "STATUS_PAUSED"
    postbacks.done("resume", postbacks.configuration_id)
    assert postbacks.held()["status"] == "STATUS_LIVE"


def test_secrets_come_from_files_and_are_not_shown(postbacks: Postbacks, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t-1234\n")
    ids = (f"configuration_id={postbacks.configuration_id}", f"app_id={postbacks.app_id}")
    url = "url=https://acme.example/?t={secret.token}&s={secret.other}"
    made = postbacks.done("create", *ids, *TEMPLATE[:3], url, f"secrets.token=@{token}", "secrets.other=o-1234")
    assert "1234" not in made
    assert postbacks.held()["secret_names"] == ["other", "token"]
    assert "1234" not in postbacks.done("preview", postbacks.configuration_id)


def test_a_preview_shows_the_request(postbacks: Postbacks) -> None:
    postbacks.create(*TEMPLATE)
    shown = postbacks.done("preview", postbacks.configuration_id)
    assert shown.startswith("GET https://acme.example/?id=")


@pytest.mark.parametrize(
    ("fields", "code", "said"),
    [
        (("network_id=acme", "trigger=Purchase"), 2, "adapter is missing"),
        (("adapter=templat",), 2, "there is no adapter 'templat'"),
        (("adapter=templat",), 2, "Did you mean template?"),
        (("adapter=template", "ulr=https://a.example"), 2, "there is no 'ulr' here"),
        (("adapter=template", "adapter_fields.ulr=https://a.example"), 2, "Did you mean url?"),
        (("adapter=template", "network_id=acme", "trigger=Purchase"), 1, "configuration.adapter_fields.url"),
    ],
)
def test_what_does_not_fit_is_said(postbacks: Postbacks, fields: tuple[str, ...], code: int, said: str) -> None:
    answer = postbacks.run("create", f"app_id={postbacks.app_id}", *fields)
    assert answer.code == code
    assert said in answer.err
