"""The alarm rules name metrics that there are."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent.parent


def test_every_alarm_asks_for_a_metric_of_ours() -> None:
    code = "".join(path.read_text() for top in ("libs", "services") for path in (ROOT / top).rglob("*.py"))
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    for rule in rules:
        metrics = re.findall(r"\b(?:attribution|worker|ingest|postback|gateway)_\w+", rule["expr"])
        assert metrics, rule
        assert all(f'"{metric}"' in code for metric in metrics), rule
        assert set(rule["annotations"]) == {"summary", "description"}
    assert len({rule["alert"] for rule in rules}) == len(rules)
