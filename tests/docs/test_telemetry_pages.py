"""The pages of Prometheus and OpenTelemetry have the headings of the guards' pages, and list every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import runners.telemetry.instruments as of_runners
from guardrails.telemetry import table

DOCS = Path(__file__).resolve().parents[2] / "docs"
HEADINGS = ["About", "Usage", "Defaults", "Telemetry", "Anti-patterns"]


@pytest.mark.parametrize("page", ["prometheus.md", "opentelemetry.md"])
def test_the_page_has_the_headings_of_the_guards_pages(page):
    text = (DOCS / page).read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert "```python" in text


def test_every_metric_is_listed_with_its_kind_and_labels():
    listed = dict(re.findall(r"^\| `(\w+)` \| (.+?) \| [^|]+ \|$", (DOCS / "prometheus.md").read_text(), re.MULTILINE))
    expected = {"guardrails_info": "info | `version`, `python`"}
    for each in (*table.TABLE, *of_runners.TABLE):
        name = each.prometheus_name + ("_total" if each.kind == "counter" else "")
        kind = "gauge" if each.kind == "updown" else each.kind
        expected[name] = f"{kind} | {', '.join(f'`{label}`' for label in each.prometheus_labels)}"
    assert {name: rest for name, rest in listed.items() if name in expected} == expected
    assert [
        name for name in listed if name.startswith(("guardrails_", "runners_", "gen_ai_")) and name not in expected
    ] == []


def test_the_links_of_the_dashboards_page_lead_somewhere():
    page = DOCS / "dashboards" / "README.md"
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
