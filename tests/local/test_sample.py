"""The sample's traffic is what its stories make."""

import json

from deploy.local.sample.generate import EXPECTED, TRAFFIC, generate


def test_the_files_are_those_that_the_stories_make() -> None:
    assert (TRAFFIC.read_text(encoding="utf-8"), EXPECTED.read_text(encoding="utf-8")) == generate()


def test_it_is_as_large_and_as_varied_as_it_should_be() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in TRAFFIC.read_text(encoding="utf-8").splitlines()]
    assert sum(expected["sent"].values()) >= 2000
    assert {name for line in lines for name in ("get", "post", "batch", "stream") if name in line} == {
        "get", "post", "batch", "stream",
    }  # fmt: skip
    assert [line["round"] for line in lines] == sorted(line["round"] for line in lines)


def test_what_is_sent_is_taken_refused_or_a_repeat() -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))
    sent, logged, refused = (sum(expected[name].values()) for name in ("sent", "logged", "refused"))
    assert sent - logged - refused > 40  # repeats
