"""The stories hold, and a file that is no scenario is told what does not fit, line by line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from libs.yaml_lines import Problem
from services.attribution.simulator.command import BROKEN, DIFFERS, HOLDS, run
from services.attribution.simulator.scenario import OUTPUT_KEYS
from services.attribution.simulator.scenario_file import ScenarioError, read_scenario
from services.attribution.simulator.simulation import check, simulate

SCENARIOS = sorted((Path(__file__).parent / "scenarios").iterdir())

STORY = """\
app: {app_id: kodemo1, platform: IOS}
networks: [{network_id: acme-ios}]
trackers: [{tracker_id: t1, network: acme-ios, type: REENGAGEMENT, events: [Purchase]}]
timeline:
  - {at: "2026-03-01T00:00:00Z", click: {id: k1, tracker: t1, device: {idfa: A1}}}
  - {at: "2026-03-01T01:00:00Z", event: {id: e1, name: Purchase, device: {idfa: a1}}}
expect: {e1: {outcome: REENGAGED, candidates: [{engagement: k1, verdict: WON}]}}
"""


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_story_holds(path: Path) -> None:
    scenario = read_scenario(path.read_text())
    assert scenario.expect
    assert check(simulate(scenario), scenario.expect) == []


def test_output_is_one_json_line_per_conversion_with_the_keys_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "story.yaml").write_text(STORY)
    assert run(tmp_path / "story.yaml", check_expect=True) == HOLDS
    (line,) = capsys.readouterr().out.splitlines()
    assert list(json.loads(line)) == list(OUTPUT_KEYS[:-1]), "no version was made because of a late record"
    assert line == (
        '{"id": "e1", "kind": "event", "outcome": "REENGAGED", "attribution_type": "REENGAGEMENT", "tracker": "t1", '
        '"network": "acme-ios", "source": "e1", "engagement": "k1", "matched_by": "DEVICE_ID", "level": 1, '
        '"lookback_s": 3600, "reason": null, "install_known": false, "custom_dimensions": {}, '
        '"candidates": [{"engagement": "k1", "verdict": "WON"}], "shared_ids": {}, "version": 1}'
    )


@pytest.mark.parametrize(
    ("expected", "difference"),
    [
        pytest.param("{outcome: CREDITED}", 'e1.outcome: expected "CREDITED", got "REENGAGED"', id="a value"),
        pytest.param("{level: true}", "e1.level: expected true, got 1", id="true is not 1"),
        pytest.param("{reason: NO_WINNER}", 'e1.reason: expected "NO_WINNER", got null', id="null"),
        pytest.param(
            "{candidates: []}",
            'e1.candidates: expected [], got [{"engagement": "k1", "verdict": "WON"}]',
            id="a list must be equal",
        ),
        pytest.param(
            "{candidates: [{engagement: k2, verdict: WON}]}",
            'e1.candidates[0].engagement: expected "k2", got "k1"',
            id="inside a list",
        ),
    ],
)
def test_check_tells_the_difference(
    expected: str, difference: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(STORY[: STORY.index("expect:")] + f"expect: {{e1: {expected}}}\n")
    assert run(path) == HOLDS
    assert run(path, check_expect=True) == DIFFERS
    assert capsys.readouterr().err == f"{path}: {difference}\n"


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        pytest.param("platform: IOS", "platform: BEOS", 1, "should be one of IOS, ANDROID", id="choice"),
        pytest.param("app_id: kodemo1, ", "", 1, "'app_id' is missing", id="missing key"),
        pytest.param("tracker: t1", "trakcer: t1", 5, "unknown key 'trakcer'", id="unknown key"),
        pytest.param("tracker: t1", "tracker: t2", 5, "no tracker 't2'", id="unknown tracker"),
        pytest.param("network: acme-ios", "network: bolt", 3, "no network 'bolt'", id="unknown network"),
        pytest.param("id: k1,", "id: '',", 5, "should not be empty", id="empty id"),
        pytest.param("device: {idfa: A1}", "device: {serial: A1}", 5, "unknown key 'serial'", id="unknown device id"),
        pytest.param("device: {idfa: A1}", "device: [A1]", 5, "should be an object", id="object"),
        pytest.param("device: {idfa: A1}", "device: {idfa: A1, idfa: B}", 5, "is repeated", id="repeated key"),
        pytest.param("device: {idfa: A1}", "ip: 300.1.1.1", 5, "not an IP address", id="ip"),
        pytest.param("2026-03-01T01:00:00Z", "yesterday", 6, "not an ISO 8601 time", id="time"),
        pytest.param("click: {id", "clik: {id", 5, "exactly one of", id="no record"),
        pytest.param("name: Purchase", "nam: Purchase", 6, "'name' is missing", id="event without a name"),
        pytest.param("id: e1", "id: e2", 7, "no install or event 'e1'", id="expects what is not there"),
        pytest.param("{outcome:", "{outcom:", 7, "unknown key 'outcom'", id="expects no output key"),
        pytest.param(
            "IOS}",
            "IOS, settings: {windows: {click_ip: 31d}}}",
            1,
            "out of range: must be 1 minute to 30 days",
            id="B2 click",
        ),
        pytest.param(
            "IOS}",
            "IOS, settings: {windows: {impression_ip: 25h}}}",
            1,
            "out of range: must be 1 minute to 24 hours",
            id="B2 impression",
        ),
        pytest.param("IOS}", "IOS, settings: {windows: {click_ip: 59s}}}", 1, "out of range", id="B2 least"),
        pytest.param("IOS}", "IOS, settings: {windows: {click_ip: 1w}}}", 1, "not a duration", id="duration"),
        pytest.param("IOS}", "IOS, settings: {omit_os_minor: 1}}", 1, "should be true or false", id="flag"),
        pytest.param(
            "IOS}",
            "IOS, settings: {install_reprocessing_window: 366d}}",
            1,
            "out of range: must be 1 to 365 days",
            id="F2",
        ),
        pytest.param("[Purchase]", "Purchase", 3, "should be a list", id="list"),
        pytest.param("[Purchase]", "[], post_view_window: 15d", 3, "longer than post_engagement_window", id="B4"),
        pytest.param("[Purchase]", "[], max_conversions_per_engagement: -1", 3, "a whole number", id="count"),
        pytest.param("timeline:", "events: [{event_name: P, mtr: 366d}]\ntimeline:", 4, "out of range", id="D3"),
        pytest.param(
            "timeline:\n",
            "timeline:\n  - {at: '2026-03-01T00:00:00Z', click: {id: k1, tracker: t1}}\n",
            6,
            "there is a click or impression 'k1' already",
            id="repeated id",
        ),
        pytest.param(
            "device: {idfa: a1}",
            "claims: [{network: acme-ios, at: '2026-03-01T00:00:00Z'}]",
            6,
            "no self-attributing network 'acme-ios'",
            id="claim of no SAN",
        ),
        pytest.param("device: {idfa: A1}", "device: {[a]: A1}", 5, "should be a text", id="a key that is no text"),
        pytest.param("[Purchase]", f"[], max_conversions_per_engagement: {'9' * 5000}", 3, "a whole number", id="huge"),
        pytest.param(
            "click: {id: k1, tracker: t1, device: {idfa: A1}}", "click: ", 5, "exactly one of", id="null record"
        ),
        pytest.param("timeline:", "timeline: ]", 4, "not YAML or JSON", id="syntax"),
        pytest.param("timeline:", f"scenario: {'[' * 500}{']' * 500}\ntimeline:", 4, "nested too deeply", id="deep"),
    ],
)
def test_problem_is_named_with_its_line(old: str, new: str, line: int, message: str) -> None:
    assert old in STORY
    with pytest.raises(ScenarioError) as caught:
        read_scenario(STORY.replace(old, new, 1))
    assert any(problem.line == line and message in problem.message for problem in caught.value.problems)


def test_every_problem_is_named() -> None:
    text = STORY.replace("IOS", "BEOS").replace("tracker: t1", "tracker: t2").replace("T01:00:00Z", "T25:00:00Z")
    with pytest.raises(ScenarioError) as caught:
        read_scenario(text)
    assert [problem.line for problem in caught.value.problems] == [1, 5, 6]


def test_two_default_trackers_of_a_network_and_type_are_one_too_many() -> None:
    """E3."""
    tracker = "{tracker_id: %s, network: acme-ios, default_tracker: true}"
    text = STORY.replace("trackers: [", f"trackers: [{tracker % 'd1'},\n  {tracker % 'd2'}, ")
    with pytest.raises(ScenarioError, match="line 4: a second default tracker"):
        read_scenario(text)


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        pytest.param('"IOS"', '"BEOS"', 4, "should be one of IOS, ANDROID", id="value"),
        pytest.param('"IOS"', "7", 4, "should be one of IOS, ANDROID", id="type"),
        pytest.param('"IOS"', '"IOS", "platform": "IOS"', 4, "is repeated", id="repeated key"),
        pytest.param('"IOS"', '"IOS", "x": 1', 4, "unknown key 'x'", id="unknown key"),
        pytest.param('"kodemo1"', "null", 2, "'app_id' is missing", id="null"),
        pytest.param('"kodemo1"', "[]", 3, "should be a text", id="no text"),
        pytest.param('"kodemo1"', '"\\ud83d"', 3, "not YAML or JSON", id="half a character"),
        pytest.param('"IOS"', '"IOS",,', 4, "not YAML or JSON", id="syntax"),
    ],
)
def test_problem_of_json_is_named_with_its_line(old: str, new: str, line: int, message: str) -> None:
    text = json.dumps({"app": {"app_id": "kodemo1", "platform": "IOS"}}, indent=2)
    assert old in text
    with pytest.raises(ScenarioError) as caught:
        read_scenario(text.replace(old, new, 1))
    assert any(problem.line == line and message in problem.message for problem in caught.value.problems)


def test_an_alias_stands_for_what_it_names() -> None:
    text = STORY.replace("device: {idfa: A1}", "device: &ours {idfa: A1}").replace(
        "device: {idfa: a1}", "device: *ours"
    )
    assert check(simulate(read_scenario(text)), read_scenario(text).expect) == []


def test_broken_file_exits_with_2_and_a_line_per_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(STORY.replace("tracker: t1", "trakcer: t1"))
    assert run(path) == BROKEN
    assert [line.split(": ", 1)[0] for line in capsys.readouterr().err.splitlines()] == [f"{path}:5", f"{path}:5"]
    assert run(tmp_path / "absent.yaml") == BROKEN
    path.write_bytes(b"scenario: \xff")
    assert run(path) == BROKEN


def test_directory_runs_every_scenario_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "2.yml").write_text(STORY)
    (tmp_path / "1.json").write_text(json.dumps({"app": {"app_id": "kodemo1"}}))
    (tmp_path / "notes.txt").write_text("no scenario")
    assert run(tmp_path, check_expect=True) == HOLDS
    out, err = capsys.readouterr()
    assert [(line["file"], line["id"]) for line in map(json.loads, out.splitlines())] == [("2.yml", "e1")]
    assert err.splitlines() == [
        f"{tmp_path / '1.json'}: expects nothing, so there is nothing to check",
        f"{tmp_path}: 2 scenarios: 2 hold, 0 differ, 0 broken",
    ]

    (tmp_path / "3.yaml").write_text(STORY.replace("REENGAGED", "CREDITED"))
    assert run(tmp_path) == HOLDS
    assert run(tmp_path, check_expect=True) == DIFFERS
    (tmp_path / "0.yaml").write_text(STORY.replace("IOS", "BEOS"))
    assert run(tmp_path, check_expect=True) == BROKEN
    assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path}: 4 scenarios: 2 hold, 1 differ, 1 broken"


def test_directory_without_a_scenario_is_wrong(tmp_path: Path) -> None:
    assert run(tmp_path) == BROKEN


def test_people_get_a_table_and_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(STORY)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    assert run(path) == HOLDS
    out, err = capsys.readouterr()
    assert "REENGAGED" in out
    assert not out.lstrip().startswith("{")
    assert "100%" in err
    assert run(path, as_json=True) == HOLDS
    assert json.loads(capsys.readouterr().out)["outcome"] == "REENGAGED"


def test_empty_text_is_a_problem() -> None:
    with pytest.raises(ScenarioError) as caught:
        read_scenario("")
    assert caught.value.problems == [Problem(1, "the file is empty")]


def test_json_says_the_same_as_yaml() -> None:
    """Tabs and an escaped character outside the basic plane are JSON, not YAML."""
    story = {
        "scenario": "\N{GRINNING FACE}",
        "app": {"app_id": "kodemo1"},
        "networks": [{"network_id": "n"}],
        "trackers": [{"tracker_id": "t", "network": "n", "campaign": "\N{GRINNING FACE}"}],
    }
    scenario = read_scenario(json.dumps(story, indent="\t"))
    assert (scenario.text, scenario.trackers[0].campaign) == ("\N{GRINNING FACE}", "\N{GRINNING FACE}")


@pytest.mark.process
def test_the_simulator_starts_by_its_name_and_loads_no_server(tmp_path: Path) -> None:
    (tmp_path / "story.yaml").write_text(STORY)
    command = (
        "import runpy, sys; "
        f"sys.argv = ['simulate', {str(tmp_path / 'story.yaml')!r}, '--check', '--json']; "
        "sys.modules.update(dict.fromkeys(('grpc', 'asyncpg', 'rich', 'typer'))); "  # an import of None fails
        "runpy.run_module('services.attribution.simulator', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (HOLDS, "")
    assert json.loads(done.stdout)["outcome"] == "REENGAGED"
