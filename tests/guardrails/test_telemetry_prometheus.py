"""What Prometheus reads: parsed back by the parsers of its own client, in both formats."""

from __future__ import annotations

import builtins
import importlib
import socket
import sys
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from guardrails.core import events
from guardrails.core.errors import MissingExtra, Rejected
from guardrails.core.events import BreakerChanged, CallFinished, CallRejected, CallSettled, CallStarted, emit
from guardrails.gates.breaker import breaker
from guardrails.gates.keyed import keyed
from guardrails.gates.limiter import limiter
from guardrails.memory.signals import AlertCleared, AlertRaised
from guardrails.telemetry.prometheus import export


@pytest.fixture
def registry():
    return CollectorRegistry()


def samples(registry):
    """Every sample, by name and labels: the same in both formats."""
    text = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(generate_latest(registry).decode())
        for sample in family.samples
    }
    strict = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_openmetrics(generate_openmetrics(registry).decode())
        for sample in family.samples
    }
    assert text == strict
    return text


def value(registry, name, **labels):
    return samples(registry).get((name, tuple(sorted(labels.items()))))


def test_a_call_is_a_histogram_in_seconds(registry):
    with export(registry):
        emit(CallStarted("ask", 1))
        assert value(registry, "guardrails_calls_active", guard="ask") == 1
        emit(CallFinished("ask", 1, 0.3, "success", first=0.1))
        name = "guardrails_call_duration_seconds"
        labels = {"guard": "ask", "outcome": "success"}
        assert value(registry, f"{name}_bucket", le="0.25", **labels) == 0
        assert value(registry, f"{name}_bucket", le="0.5", **labels) == 1
        assert value(registry, f"{name}_bucket", le="+Inf", **labels) == 1
        assert value(registry, f"{name}_sum", **labels) == 0.3
        assert value(registry, f"{name}_count", **labels) == 1
        assert value(registry, "guardrails_call_time_to_first_item_seconds_sum", guard="ask") == 0.1
        assert value(registry, "guardrails_calls_active", guard="ask") == 0


def test_a_circuit_is_a_set_of_states(registry):
    with export(registry):
        openai = breaker(name="openai")
        openai.force_open()
        states = ("closed", "open", "half-open", "forced-open", "disabled", "metrics-only")
        found = {state: value(registry, "guardrails_breaker_state", guard="openai", state=state) for state in states}
        assert found == dict.fromkeys(states, 0) | {"forced-open": 1}
        openai.close()
        assert value(registry, "guardrails_breaker_state", guard="openai", state="closed") == 1
        assert value(registry, "guardrails_breaker_changes_total", guard="openai", state="closed") == 1


def test_an_alarm_stands_until_it_is_cleared(registry):
    with export(registry):
        emit(AlertRaised("self", "memory_high", "warning", "91 % of 1 GiB", "Raise it."))
        assert value(registry, "guardrails_alert_active", subject="self", alert="memory_high") == 1
        emit(AlertCleared("self", "memory_high", 60.0))
        assert value(registry, "guardrails_alert_active", subject="self", alert="memory_high") == 0
        assert value(registry, "guardrails_alerts_total", alert="memory_high", severity="warning") == 1


def test_a_name_with_anything_in_it_is_read_back_as_it_is(registry):
    name = 'say "hi"\\ to\nñandú'
    with export(registry):
        emit(CallSettled(name, "success"))
        assert value(registry, "guardrails_gate_settled_total", guard=name, outcome="success") == 1


def test_the_version_is_told(registry):
    with export(registry):
        (labels,) = [dict(labels) for name, labels in samples(registry) if name == "guardrails_info"]
    assert labels["python"] == ".".join(map(str, sys.version_info[:3]))
    assert labels["version"]


def test_ten_thousand_keys_are_a_handful_of_series(registry):
    users = 10_000
    calls = keyed(lambda user: breaker(name=user, fail_max=1), key=lambda user: user, max_keys=users, name="users")
    quota = limiter(requests=1, per=60, key=lambda user: user, max_keys=users, queue=0, name="quota")

    @calls
    @quota
    def ask(user):
        raise ConnectionError

    with export(registry):
        for number in range(users):
            for _ in range(2):
                with pytest.raises((ConnectionError, Rejected)):
                    ask(f"user-{number}")
        found = samples(registry)
        guards = {dict(labels).get("guard") for _, labels in found} - {None}
        assert {"users", "quota"} <= guards
        assert len(guards) <= 3  # and the pipeline
        assert not [labels for _, labels in found if "user-" in str(labels)]
        assert len(found) < 200
        assert value(registry, "guardrails_breaker_changes_total", guard="users", state="open") == users
        assert value(registry, "guardrails_gate_rejections_total", guard="users", reason="open") == users
        assert value(registry, "guardrails_breaker_state", guard="users", state="open") is None


def test_ten_thousand_names_are_as_many_series_as_labels_may_have_values(registry):
    with export(registry, max_values=50):
        for number in range(10_000):
            emit(CallSettled(f"guard-{number}", "success"))
            emit(CallRejected(f"guard-{number}", f"reason-{number}", None))
            emit(CallFinished(f"guard-{number}", number, 0.1, "success"))
            emit(BreakerChanged(f"guard-{number}", "closed", "open", 1.0))
        found = samples(registry)
        settled = [count for (name, _), count in found.items() if name == "guardrails_gate_settled_total"]
        assert (len(settled), sum(settled)) == (51, 10_000)
        assert value(registry, "guardrails_gate_settled_total", guard="other", outcome="success") == 9950
        histograms = [name for name, _ in found if name == "guardrails_call_duration_seconds_count"]
        assert len(histograms) == 51
        # The version; settled, rejections, calls, active ones, changes, states.
        assert len(found) == 1 + 51 + 51 + 51 * 20 + 51 + 51 + 50 * 6


def test_nothing_is_counted_after_stop_and_the_registry_is_free_again(registry):
    metrics = export(registry)
    emit(CallSettled("a", "success"))
    metrics.stop()
    metrics.stop()
    assert samples(registry) == {}
    assert "stopped" in repr(metrics)
    with export(registry) as again:
        assert "counting" in repr(again)
        emit(CallSettled("a", "success"))
        assert value(registry, "guardrails_gate_settled_total", guard="a", outcome="success") == 1


def test_a_registry_that_was_cleared_can_still_be_left(registry):
    metrics = export(registry)
    registry.unregister(metrics)
    metrics.stop()


def test_two_exports_into_one_registry_are_refused_and_the_second_leaves_nothing(registry):
    with export(registry):
        before = events.sinks
        with pytest.raises(ValueError, match="Duplicated"):
            export(registry)
        assert events.sinks == before
    with export(registry), export(CollectorRegistry()):
        pass


def test_by_default_it_is_the_registry_of_the_client():
    import prometheus_client

    with export() as metrics:
        assert metrics.registry is prometheus_client.REGISTRY


# Over HTTP


def read(port, accept="text/plain"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_it_serves_on_this_machine_only_and_closes_its_port(registry):
    before = threading.active_count()
    with export(registry) as metrics:
        assert threading.active_count() == before  # no port is opened unless asked for
        port = metrics.serve(0)
        assert metrics._servers[0][0].server_address[0] == "127.0.0.1"
        emit(CallSettled("a", "success"))
        kind, text = read(port)
        assert kind.startswith("text/plain")
        assert 'guardrails_gate_settled_total{guard="a",outcome="success"} 1.0' in text
        kind, text = read(port, "application/openmetrics-text")
        assert kind.startswith("application/openmetrics-text")
        assert list(parse_openmetrics(text))
        with socket.socket() as taken, pytest.raises(OSError, match="in use"):
            taken.bind(("127.0.0.1", port))
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", port))
    assert threading.active_count() == before


@pytest.mark.parametrize("port", [-1, 65536, "9464", True, None])
def test_a_port_that_is_none_is_refused(registry, port):
    with export(registry) as metrics, pytest.raises(ValueError, match="port takes a whole number from 0 to 65535"):
        metrics.serve(port)


def test_a_stopped_export_does_not_serve(registry):
    metrics = export(registry)
    metrics.stop()
    with pytest.raises(RuntimeError, match="this export has been stopped"):
        metrics.serve(0)


@pytest.mark.parametrize("options", [{"max_values": 0}, {"stale_after": -1}])
def test_misuse_is_refused_and_leaves_nothing(registry, options):
    before = events.sinks
    with pytest.raises(ValueError, match=next(iter(options))):
        export(registry, **options)
    assert events.sinks == before
    assert samples(registry) == {}


def test_without_the_package_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("prometheus_client"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "guardrails.telemetry.prometheus")
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'guarded-runners\[prometheus\]'"):
        importlib.import_module("guardrails.telemetry.prometheus")
