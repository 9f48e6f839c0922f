"""There is a page for every guard, all pages of guards have the same headings, and no link leads nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import guardrails
import guardrails.errors
import guardrails.events

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
HEADINGS = ["About", "Usage", "Defaults", "Telemetry", "Anti-patterns"]
#: Where a public name is documented, if not on the page of its own name.
PAGES = {
    "attempt": "retry",
    "deadline_in": "deadline",
    "guard": "pipeline",
    "inject": "chaos",
    "remaining": "deadline",
    "subscribe": "events",
}


@pytest.mark.parametrize("name", guardrails.__all__)
def test_every_public_name_has_its_page(name: str) -> None:
    text = (DOCS / f"{PAGES.get(name, name)}.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert "```python" in text
    assert re.search(rf"\b{name}\b", text)


def test_the_llama_page_has_the_headings_of_the_guards_pages() -> None:
    text = (DOCS / "llama.md").read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    assert re.search(r"\bLlamaRunner\b", text)


def test_every_event_is_listed() -> None:
    text = (DOCS / "events.md").read_text()
    events = [name for name in guardrails.events.__all__ if name not in {"Event", "Sink"}]
    assert [name for name in events if not re.search(rf"\b{name}\b", text)] == []


def test_the_public_modules_hold_what_they_list() -> None:
    for module in (guardrails.errors, guardrails.events):
        for name in module.__all__:
            assert getattr(module, name).__name__ == name or name == "Sink"
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            module.Nothing  # noqa: B018


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
