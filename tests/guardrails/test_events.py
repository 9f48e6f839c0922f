from __future__ import annotations

import dataclasses
import logging

import pytest

from guardrails import subscribe
from guardrails.core import events
from guardrails.core.events import BreakerChanged, CallAdmitted, CallRejected, CallSettled, Event, MemoryPressure, emit
from guardrails.errors import CircuitOpen, MemoryRefused
from guardrails.gates.admit import admit
from guardrails.gates.breaker import breaker
from tests.guardrails.heard import decisions


def test_sinks_get_events_in_the_order_they_subscribed():
    seen = []
    ends = [subscribe(lambda event, name=name: seen.append((name, event))) for name in "ab"]
    event = Event("x")
    emit(event)
    for end in ends:
        end()
    emit(Event("unheard"))
    assert seen == [("a", event), ("b", event)]


def test_a_subscription_can_be_ended_twice_and_ends_no_other():
    seen = []
    first, second = subscribe(seen.append), subscribe(seen.append)
    first()
    first()
    emit(Event("x"))
    second()
    assert seen == [Event("x")]


def test_a_sink_must_be_callable():
    with pytest.raises(TypeError, match="sink takes a function of one event, not str"):
        subscribe("log")


def test_a_broken_sink_is_logged_and_the_others_still_hear(caplog):
    def broken(event):
        raise ValueError("sink is broken")

    end = subscribe(broken)
    with decisions() as seen, caplog.at_level(logging.ERROR, "guardrails.events"):
        assert breaker(name="b")(lambda: 7)() == 7
    end()
    assert seen == [CallAdmitted("b", 0.0), CallSettled("b", "success")]
    assert "sink is broken" in caplog.text
    assert "CallAdmitted" in caplog.text


def test_a_sink_may_subscribe_and_unsubscribe_while_it_is_called():
    seen = []

    def once(event):
        end()
        seen.append(event)

    end = subscribe(once)
    emit(Event("x"))
    emit(Event("y"))
    assert seen == [Event("x")]


def test_nothing_is_built_when_nobody_listens(monkeypatch, memory, clock):
    def forbidden(*args):
        raise AssertionError("an event was built for nobody")

    for name in ("CallAdmitted", "CallRejected", "CallSettled", "BreakerChanged", "MemoryPressure", "emit"):
        monkeypatch.setattr(events, name, forbidden)
    circuit = breaker(fail_max=1, clock=clock)
    gate = admit(concurrency=1, sampler=memory)
    assert circuit(gate(lambda: 7))() == 7
    with pytest.raises(ZeroDivisionError):
        circuit(gate(lambda: 1 / 0))()
    with pytest.raises(CircuitOpen):
        circuit(lambda: 7)()
    memory.use(10 * 1024**3)
    with pytest.raises(MemoryRefused):
        gate(lambda: 7)()


def test_the_story_of_a_breaker(clock):
    circuit = breaker(name="api", fail_max=1, open_for=10, clock=clock)
    with decisions() as seen:
        with pytest.raises(ZeroDivisionError):
            circuit(lambda: 1 / 0)()
        clock.advance(4)
        with pytest.raises(CircuitOpen):
            circuit(lambda: 7)()
        clock.advance(6)
        circuit(lambda: 7)()
    assert seen == [
        CallAdmitted("api", 0.0),
        BreakerChanged("api", "closed", "open", 10),
        CallSettled("api", "failure"),
        CallRejected("api", "open", 6.0),
        BreakerChanged("api", "open", "half-open", None),
        CallAdmitted("api", 0.0),
        BreakerChanged("api", "half-open", "closed", None),
        CallSettled("api", "success"),
    ]


def test_memory_pressure_is_told_once_a_change(memory):
    gate = admit(concurrency=1, sampler=memory, name="gate")
    with decisions() as seen:
        memory.use(86, 100)
        memory.use(87, 100)
        memory.use(96, 100)
        memory.use(10, 100)
    assert seen == [
        MemoryPressure("gate", "high", 86, 100),
        MemoryPressure("gate", "critical", 96, 100),
        MemoryPressure("gate", "normal", 10, 100),
    ]
    assert gate.level == "normal"


def test_events_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Event("x").source = "y"
