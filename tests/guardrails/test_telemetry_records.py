"""Every event in words: none is left out, and nothing that a call was made with is let in."""

from __future__ import annotations

import dataclasses
import logging
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

import guardrails
from guardrails.core.events import BreakerChanged, CallFinished, CallRejected, Event, MemoryPressure
from guardrails.core.names import KeyedName
from guardrails.memory.signals import AlertCleared, AlertRaised, MemorySampled
from guardrails.telemetry import records
from guardrails.telemetry.records import SEVERITIES, Record, describe, is_scalar, most_severe, record, register
from tests.every_event import Sample, an, every_event

SECRET = "the prompt is: tell me of Peru"


@pytest.mark.parametrize("kind", every_event(guardrails), ids=lambda kind: kind.__name__)
def test_every_event_is_described(kind):
    said = describe(an(kind))
    assert not said.name.startswith("event."), "it has no description of its own"
    assert said.source == "word"
    assert said.severity in SEVERITIES
    assert SEVERITIES.index(said.severity) <= SEVERITIES.index(most_severe(kind))
    assert said.message
    assert "\n" not in said.message
    assert all(is_scalar(value) for value in said.fields.values())


def test_there_are_as_many_as_we_think():
    kinds = every_event(guardrails)
    assert len(kinds) >= 30
    names = [describe(an(kind)).name for kind in kinds]
    assert sorted(names) == sorted(set(names))


def test_a_record_in_words():
    said = describe(BreakerChanged("openai", "closed", "open", 15.0))
    assert said == Record(
        "breaker.changed",
        "warning",
        "circuit closed -> open, retry after 15 s",
        {"old": "closed", "new": "open", "retry_after": 15.0},
        "openai",
    )
    assert str(said) == "openai: circuit closed -> open, retry after 15 s"


@pytest.mark.parametrize(
    ("event", "severity"),
    [
        (BreakerChanged("b", "closed", "open", 1.0), "warning"),
        (BreakerChanged("b", "open", "half-open", None), "info"),
        (MemoryPressure("a", "critical", 9, 10), "error"),
        (MemoryPressure("a", "high", 9, 10), "warning"),
        (MemoryPressure("a", "normal", 9, 10), "info"),
        (AlertRaised("p", "memory_high", "critical", "m", "a"), "error"),
        (AlertRaised("p", "memory_high", "warning", "m", "a"), "warning"),
        (AlertCleared("p", "memory_high", 5.0), "info"),
        (CallFinished("c", 1, 0.5, "failure"), "debug"),
        (CallRejected("c", "open", 2.0), "debug"),
    ],
)
def test_how_much_it_matters(event, severity):
    assert describe(event).severity == severity


def test_an_alert_says_what_to_do():
    said = describe(
        AlertRaised("api", "memory_high", "critical", "9 of 10 GiB", "add memory", {"used": 9, "why": "leak"})
    )
    assert (said.message, said.hint) == ("9 of 10 GiB", "add memory")
    assert said.fields == {"alert": "memory_high", "used": 9, "why": "leak"}


def test_samples_are_summed_up():
    assert describe(MemorySampled("api", Sample())).fields == {"processes": 2, "private": 2 << 20}


def test_a_key_is_not_shown():
    assert describe(CallRejected(KeyedName("user-17", "per-user"), "open", None)).source == "per-user"


# What may stand in a record


def test_a_text_is_no_word():
    @dataclasses.dataclass(frozen=True)
    class Custom(Event):
        text: str
        word: str
        number: int
        thing: object
        nothing: None = None

    said = describe(Custom("mine", SECRET, "chat/v1.5_a-b:c+d", 5, [SECRET]))
    assert (said.name, said.severity, said.message) == ("event.custom", "info", "custom")
    assert said.fields == {"word": "chat/v1.5_a-b:c+d", "number": 5}
    assert most_severe(Custom) == "info"


@given(
    st.dictionaries(st.text(), st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none(), st.booleans()))
)
def test_a_record_is_bounded(fields):
    said = record(Event("s" * 1000), "name", "info", "m" * 1000, fields=fields, hint="h" * 1000)
    assert len(said.source) == 80
    assert len(said.message) == len(said.hint) == 500
    assert len(said.fields) <= 32
    for value in said.fields.values():
        assert isinstance(value, bool | int | float) or (
            0 < len(value) <= 64 and set(value) <= set(string.ascii_letters + string.digits + "_.:/+-")
        )


# Descriptions of one's own


@pytest.fixture
def unregistered(monkeypatch):
    monkeypatch.setattr(records, "_known", dict(records._known))
    monkeypatch.setattr(records, "_found", {})


@dataclasses.dataclass(frozen=True)
class Own(Event):
    pages: int


class Special(Own):
    pass


def test_an_event_of_ones_own_is_described(unregistered):
    assert describe(Own("me", 5)).name == "event.own"
    register(Own, lambda event: record(event, "own.done", "warning", f"{event.pages} pages"), most="warning")
    assert str(describe(Own("me", 5))) == "me: 5 pages"
    assert describe(Special("me", 5)).name == "own.done"
    assert most_severe(Special) == "warning"


def test_a_second_description_must_be_meant(unregistered):
    register(Own, lambda event: record(event, "a", "info", "a"))
    with pytest.raises(ValueError, match="Own has a description already"):
        register(Own, lambda event: record(event, "b", "info", "b"))
    register(Own, lambda event: record(event, "b", "info", "b"), replace=True)
    assert describe(Own("me", 5)).name == "b"


def test_a_broken_description_is_logged_and_the_event_told(unregistered, caplog):
    register(Own, lambda event: 1 / 0)
    with caplog.at_level(logging.ERROR, "guardrails.telemetry"):
        assert describe(Own("me", 5)).name == "event.own"
    assert "cannot describe Own" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((int, print), {}, "kind takes a class of events"),
        ((5, print), {}, "kind takes a class of events"),
        ((Own, 5), {}, "function takes a function of one event, not int"),
        ((Own, print), {"most": "bad"}, "most takes one of 'debug'"),
    ],
)
def test_misuse_is_named(unregistered, arguments, options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        register(*arguments, **options)
