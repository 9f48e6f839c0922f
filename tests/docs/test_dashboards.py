"""The dashboard and the alert rules: every expression parses, and every metric and label that it names exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import runners.telemetry.instruments as of_runners
from guardrails.telemetry import table

promql = pytest.importorskip("promql_parser")
yaml = pytest.importorskip("yaml")

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "dashboards"
DASHBOARD = json.loads((FOLDER / "guarded-runners.json").read_text())
RULES = yaml.safe_load((FOLDER / "alerts.yaml").read_text())
SIGNS = {"memory_growth", "ai_timeouts", "memory_crash", "slow_at_low_load"}
#: What Prometheus adds to every series.
OF_TARGETS = {"job", "instance"}
#: The units of Grafana that panels use.
UNITS = {"short", "s", "bytes", "binBps", "percentunit", "reqps", "cps"}


def series():
    """Every name of a sample, and its labels."""
    found = {"guardrails_info": {"version", "python"}}
    for each in (*table.TABLE, *of_runners.TABLE):
        name, labels = each.prometheus_name, set(each.prometheus_labels)
        if each.kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[f"{name}_total" if each.kind == "counter" else name] = labels
    return found


SERIES = series()


def parsed(expression):
    for variable in ("$__rate_interval", "$__interval"):
        expression = expression.replace(variable, "5m")
    return promql.parse(expression)


def selectors(tree):
    """The selectors of an expression, and the labels that its aggregations and joins name."""
    kind = type(tree).__name__
    if kind == "VectorSelector":
        return [tree], set()
    if kind == "MatrixSelector":
        return selectors(tree.vector_selector)
    if kind in ("NumberLiteral", "StringLiteral"):
        return [], set()
    if kind == "BinaryExpr":
        parts, named = [tree.lhs, tree.rhs], set()
        matching = tree.modifier.matching if tree.modifier is not None else None
        if matching is not None:
            named |= set(matching.labels)
    elif kind == "Call":
        parts, named = list(tree.args), set()
    else:
        assert kind in ("AggregateExpr", "ParenExpr", "UnaryExpr", "SubqueryExpr"), kind
        parts, named = [tree.expr], set()
        if kind == "AggregateExpr" and tree.modifier is not None:
            named |= set(tree.modifier.labels)
    found = []
    for part in parts:
        more, also = selectors(part)
        found += more
        named |= also
    return found, named


def check(expression):
    """It parses, and speaks of what there is. Returns the names of its metrics."""
    found, named = selectors(parsed(expression))
    assert found, f"no metric in {expression}"
    labels = set(OF_TARGETS)
    for selector in found:
        assert selector.name in SERIES, f"{selector.name}: no such metric, in {expression}"
        own = SERIES[selector.name]
        labels |= own
        for matcher in selector.matchers.matchers:
            assert matcher.name in own | OF_TARGETS, f"{selector.name} has no label {matcher.name}, in {expression}"
    assert named <= labels, f"{named - labels}: no such labels, in {expression}"
    if "histogram_quantile" in expression:
        assert "le" in named
    return {selector.name for selector in found}, named


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


EXPRESSIONS = [
    pytest.param(panel, target, id=f"{panel['title']} {target['refId']}")
    for panel in panels()
    for target in panel["targets"]
]


def test_the_checks_find_what_is_wrong():
    with pytest.raises(AssertionError, match="no such metric"):
        check("rate(guardrails_calls_total[5m])")
    with pytest.raises(AssertionError, match="has no label user"):
        check('guardrails_calls_active{user="ada"}')
    with pytest.raises(AssertionError, match="no such labels"):
        check("sum by (user) (guardrails_calls_active)")
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        check("sum by (guard (guardrails_calls_active)")
    check("sum by (guard) (guardrails_calls_active) / on (guard) sum by (guard) (runners_queue_length)")


@pytest.mark.parametrize(("panel", "target"), EXPRESSIONS)
def test_every_expression_of_the_dashboard_speaks_of_what_there_is(panel, target):
    _, named = check(target["expr"])
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        # What an aggregation has dropped would be shown as nothing.
        assert label in named or " by " not in target["expr"], f"{label} is not in the result of {target['expr']}"


def test_every_panel_says_what_it_shows_and_in_which_unit():
    for panel in panels():
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert panel["targets"], panel["title"]
        names = {name for target in panel["targets"] for name in check(target["expr"])[0]}
        if any(name.endswith(("_seconds_bucket", "_time_left_seconds")) for name in names):
            assert panel["fieldConfig"]["defaults"]["unit"] == "s", panel["title"]
        if names and all(name.endswith("_bytes") for name in names):
            assert panel["fieldConfig"]["defaults"]["unit"] in ("bytes", "percentunit"), panel["title"]


def test_panels_have_numbers_of_their_own_and_do_not_lie_on_each_other():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert [t for t in titles if t in ("Calls", "Breakers", "Limits", "Memory", "Runners", "Alarms")] == [
        *("Calls", "Breakers", "Limits", "Memory", "Runners", "Alarms")
    ]


def test_every_metric_of_runners_and_guards_is_somewhere_on_the_dashboard():
    shown = {name for panel in panels() for target in panel["targets"] for name in check(target["expr"])[0]}
    bases = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in shown}
    every = {each.prometheus_name for each in (*table.TABLE, *of_runners.TABLE)}
    # The same as runners_request_duration_seconds, under the name of the conventions.
    assert every - bases == {"gen_ai_client_operation_duration_seconds", "runners_request_time_to_first_item_seconds"}


def test_variables_and_annotations_speak_of_what_there_is_too():
    for variable in DASHBOARD["templating"]["list"]:
        for name in re.findall(r"label_values\((\w+)", str(variable["query"])):
            assert name in SERIES
    for annotation in DASHBOARD["annotations"]["list"]:
        check(annotation["expr"])


# The rules

ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


def test_the_rules_have_the_shape_that_prometheus_takes():
    assert set(RULES) == {"groups"}
    for group in RULES["groups"]:
        assert set(group) == {"name", "rules"}
        assert group["rules"]
    names = [group["name"] for group in RULES["groups"]]
    assert len(names) == len(set(names))
    for rule in ALERTS:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert re.fullmatch(r"[A-Z][A-Za-z]+", rule["alert"])
        assert promql.parse_duration(rule.get("for", "1s")).total_seconds() <= 3600
        assert set(rule["labels"]) <= {"severity", "sign"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert all(isinstance(text, str) for text in (*rule["labels"].values(), *rule["annotations"].values()))
        assert rule["annotations"]["action"].rstrip().endswith(".")
    names = [rule["alert"] for rule in ALERTS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_rule_speaks_of_what_there_is(rule):
    _, named = check(rule["expr"])
    known = OF_TARGETS | {label for name in check(rule["expr"])[0] for label in SERIES[name]}
    for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        assert label in known
        assert label in named or " by " not in rule["expr"], f"{label} is not in the result of {rule['alert']}"
    for opened in re.findall(r"\{\{(.*?)\}\}", str(rule["annotations"])):
        assert re.fullmatch(r" \$labels\.\w+ | \$value( \| humanize\w*)? ", opened), opened


def test_each_sign_of_alarm_has_a_rule():
    assert {rule["labels"]["sign"] for rule in ALERTS if "sign" in rule["labels"]} == SIGNS


def test_every_alarm_that_a_rule_names_is_one_of_the_toolkit():
    named = {name for rule in ALERTS for name in re.findall(r'alert="(\w+)"', rule["expr"])}
    source = "\n".join(
        path.read_text()
        for folder in ("guardrails/memory/monitor", "guardrails/shared")
        for path in (FOLDER.parents[1] / folder).rglob("*.py")
    )
    assert named == SIGNS | {"memory_high", "redis_memory"}
    assert [name for name in named if f'"{name}"' not in source] == []


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules():
    done = subprocess.run(
        ["promtool", "check", "rules", "--lint-fatal", str(FOLDER / "alerts.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
