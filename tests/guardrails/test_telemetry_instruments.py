"""The table: every metric is well named, and every event is counted or left out on purpose."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
import sys
import types
import typing
from pathlib import Path

import pytest

import guardrails
import runners
import runners.telemetry.instruments as of_runners
from guardrails.core.events import Event
from guardrails.memory.monitor.sample import ProcessSample, Sample
from guardrails.memory.reading import Scope
from guardrails.memory.signals import MemorySampled
from guardrails.telemetry import table
from guardrails.telemetry.instruments import Instrument, Registry, counter, one_of
from runners.supervision.events import RequestFinished, RunnerSampled
from runners.supervision.stats import RunnerStats, WorkerStats

ALL = (*table.TABLE, *of_runners.TABLE)
SAMPLE = Sample(
    at=1.0,
    monotonic=1.0,
    processes=(ProcessSample("self", 1, "self", 10, 20, 15, 100), ProcessSample("embedder/0", 2, "worker", 5, 6)),
    scopes=(Scope("host", 50, 100), Scope("/sys/fs/cgroup/a/b", 5, 10), Scope("/sys/fs/cgroup/a", 5, 20)),
    gc=(3, 2, 1),
    trimmed=True,
)
STATS = RunnerStats(
    *("embedder", "ready", 9, 5, 1, 1, 1, 0, 1, {"oom_kill": 1}),
    workers=(WorkerStats(7, "ready", 100, 50, 1, 5, growth=10.0, soft_budget_in=60.0),),
)
#: Values of fields whose type does not tell enough.
GIVEN = {
    "sample": SAMPLE,
    "stats": STATS,
    "values": {},
    "source": "openai",
    "operation": "chat",
    "outcome": "answered",
}


def events():
    """Every class of event of both packages. Only modules that define some are imported: others open files."""
    for package in (guardrails, runners):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            source = Path(module.module_finder.find_spec(module.name).origin).read_text()
            if re.search(r"^class \w+\((\w+\.)?Event\)", source, re.MULTILINE):
                importlib.import_module(module.name)
    found, ahead = [], [Event]
    while ahead:
        kinds = ahead.pop().__subclasses__()
        ahead += kinds
        found += [kind for kind in kinds if kind.__module__.partition(".")[0] in ("guardrails", "runners")]
    return found


def example(kind):
    """An event of the class, with something in every field."""

    def value(name, hint):
        if name in GIVEN:
            return GIVEN[name]
        for plain, made in ((bool, True), (int, 3), (float, 1.5), (str, "word")):
            if hint is plain or plain in typing.get_args(hint):
                return made
        return "word"  # a literal

    scope = {"Sample": Sample, "RunnerStats": RunnerStats}
    hints = typing.get_type_hints(kind, localns=scope)
    return kind(**{field.name: value(field.name, hints[field.name]) for field in dataclasses.fields(kind)})


def test_every_event_is_read_by_some_metric():
    fed = {place for instrument in ALL for place, _ in instrument.feeds}
    known = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in events()}
    assert fed - set(known) == set()  # no feed waits for an event that there is not
    # Told by RunnerSampled, once a second, whether it changed or not.
    assert set(known) - fed == {"runners.supervision.events:RunnerStateChanged"}


def test_every_feed_reads_its_event_into_points_of_the_right_shape():
    kinds = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in events()}
    for instrument in ALL:
        for place, read in instrument.feeds:
            points = read(example(kinds[place]))
            if not (instrument.sampled or instrument.kind == "gauge"):
                points = [points]
            assert points, instrument.name
            for values, amount in points:
                assert len(values) == len(instrument.labels), instrument.name
                assert all(isinstance(value, str) for value in values), instrument.name
                assert isinstance(amount, int | float), instrument.name


def test_names_follow_the_conventions_of_prometheus():
    for instrument in ALL:
        name = instrument.prometheus_name
        assert re.fullmatch(r"(guardrails|runners|gen_ai)_[a-z0-9_]*[a-z0-9]", name)
        # What an exposition adds, and what promtool's linter wants nowhere else.
        assert not name.endswith(("_total", "_sum", "_count", "_bucket", "_info", "_created")), name
        assert not re.search(r"_(milli|micro|kilo|mega|ms|mb|minutes|hours)", name), name
        assert instrument.help.endswith("."), name
    names = [instrument.prometheus_name for instrument in ALL]
    assert len(names) == len(set(names))


def test_the_name_in_prometheus_follows_from_name_and_unit():
    def name(of, unit):
        return Instrument(of, "gauge", unit, "Help.", ("guard",), ()).prometheus_name

    assert name("guardrails.call.duration", "s") == "guardrails_call_duration_seconds"
    assert name("guardrails.memory.private", "By") == "guardrails_memory_private_bytes"
    assert name("runners.worker.growth", "By/s") == "runners_worker_growth_bytes_per_second"
    assert name("guardrails.limiter.rate", "1") == "guardrails_limiter_rate_ratio"
    assert name("guardrails.calls", "{call}") == "guardrails_calls"
    assert name("guardrails.idle_seconds", "s") == "guardrails_idle_seconds"


def test_labels_become_attributes_in_the_space_of_the_metric():
    made = Instrument("runners.tokens", "counter", "{token}", "Help.", ("runner", "error.type"), ())
    assert made.attributes == ("runners.runner", "error.type")
    assert made.prometheus_labels == ("runner", "error_type")


def test_boundaries_are_those_of_the_conventions_for_generative_ai():
    # As the specification writes them (semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md).
    by_name = {instrument.name: instrument.buckets for instrument in of_runners.TABLE}
    doubling = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92]
    assert list(by_name["gen_ai.client.operation.duration"]) == doubling
    tokens = [1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864]
    assert list(by_name["gen_ai.client.token.usage"]) == tokens
    first = [0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]
    assert list(by_name["gen_ai.server.time_to_first_token"]) == first
    pace = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5]
    assert list(by_name["gen_ai.server.time_per_output_token"]) == pace


def test_names_of_generative_ai_are_those_of_the_conventions():
    metrics = pytest.importorskip("opentelemetry.semconv._incubating.metrics.gen_ai_metrics")
    attributes = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    errors = pytest.importorskip("opentelemetry.semconv.attributes.error_attributes")
    known = {value for value in vars(metrics).values() if isinstance(value, str)}
    labels = {value for value in (*vars(attributes).values(), errors.ERROR_TYPE) if isinstance(value, str)}
    ours = [instrument for instrument in of_runners.TABLE if instrument.name.startswith("gen_ai")]
    assert len(ours) == 4
    for instrument in ours:
        assert instrument.name in known
        assert set(instrument.labels) <= labels


def test_cgroups_are_told_apart_by_their_place_and_not_by_their_path():
    assert [name for name, _ in table.scope_names(SAMPLE.scopes)] == ["host", "cgroup", "cgroup_1"]


def test_headroom_is_that_below_the_nearest_limit():
    read = {instrument.name: instrument.feeds[0][1] for instrument in table.TABLE}["guardrails.memory.headroom"]
    assert read(MemorySampled("monitor", SAMPLE)) == [(("monitor",), 5)]
    assert read(MemorySampled("monitor", dataclasses.replace(SAMPLE, scopes=()))) == []
    over = dataclasses.replace(SAMPLE, scopes=(Scope("host", 11, 10),))
    assert read(MemorySampled("monitor", over)) == [(("monitor",), 0)]


def test_one_of_has_a_gauge_for_each_state_and_for_one_that_nobody_knew():
    assert list(one_of("a", ("closed", "open"), "open")) == [(("a", "closed"), 0.0), (("a", "open"), 1.0)]
    assert (("a", "new"), 1.0) in one_of("a", ("closed",), "new")


FINISHED = RequestFinished("r", "chat", "tiny.gguf", "answered", None, 2.0, 0.5, 1.0, 10, 11)


def read_of(name, event):
    return [read(event) for read in (feed[1] for each in of_runners.TABLE if each.name == name for feed in each.feeds)]


def test_the_pace_of_tokens_is_that_after_the_first():
    pace = "gen_ai.server.time_per_output_token"
    assert read_of(pace, FINISHED) == [(("chat", "guarded_runners", "tiny.gguf"), 0.1)]
    for change in ({"output_tokens": 1}, {"output_tokens": None}, {"first": None}, {"outcome": "failed"}):
        assert read_of(pace, dataclasses.replace(FINISHED, **change)) == [None]


def test_only_generation_and_embeddings_are_generative():
    call = dataclasses.replace(FINISHED, operation="call")
    for name in (each.name for each in of_runners.TABLE if each.name.startswith("gen_ai")):
        assert set(read_of(name, call)) == {None}
        assert None not in read_of(name, FINISHED)
    assert read_of("runners.tokens", call) == [(("r", "input"), 10), (("r", "output"), 11)]


def test_a_runner_that_does_not_grow_has_no_time_left():
    still = dataclasses.replace(STATS, workers=(WorkerStats(7, "ready", 100, 50, 1, 5),))
    assert read_of("runners.budget.time_left", RunnerSampled("r", still)) == [[]]
    assert read_of("runners.budget.time_left", RunnerSampled("r", STATS)) == [[(("r",), 60.0)]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "calls"}, "name of 'calls' takes lower-case words joined by dots"),
        ({"name": "Guardrails.calls"}, "name of"),
        ({"kind": "summary"}, "kind of 'a.b' takes one of counter"),
        ({"unit": "ms"}, "unit of 'a.b' takes s, By"),
        ({"labels": ()}, "labels of 'a.b' takes at least one"),
        ({"labels": ("guard", "Guard")}, "labels of"),
        ({"labels": ("guard", "guard")}, "different words"),
        ({"labels": ("guard", "le")}, "none of them 'le'"),
        ({"feeds": (("CallAdmitted", lambda e: None),)}, "feeds of 'a.b' takes events as 'module:Class'"),
        ({"kind": "histogram"}, "buckets of 'a.b' takes rising numbers"),
        ({"buckets": (1, 2)}, "buckets of"),
        ({"kind": "histogram", "buckets": (2, 1)}, "buckets of"),
        ({"kind": "updown", "sampled": True}, "sampled of 'a.b' takes True for gauges and counters only"),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(change, message):
    about = {"name": "a.b", "kind": "counter", "unit": "", "help": "Help.", "labels": ("guard",), "feeds": ()} | change
    with pytest.raises(ValueError, match=re.escape(message) if "'" in message else message):
        Instrument(**about)


def test_a_name_is_given_once():
    registry = Registry()
    feeds = {"somewhere:Event": lambda e: (("a",), 1)}
    registry.register(counter("a.b_c", "", "Help.", "guard", feeds))
    with pytest.raises(ValueError, match=r"there is a metric 'a\.b\.c' already"):
        registry.register(counter("a.b.c", "", "Help.", "guard", feeds))  # the same in Prometheus
    with pytest.raises(TypeError, match="instruments takes Instrument, not str"):
        registry.register("a.b")
    assert [each.name for each in registry.all()] == ["a.b_c"]
    registry.unregister("a.b_c", "unknown")
    assert registry.all() == ()
    registry.register(counter("a.b.c", "", "Help.", "guard", feeds))


class Base(Event):
    pass


class Child(Base):
    pass


def test_an_event_is_read_as_the_nearest_of_its_bases_is():
    registry = Registry()
    registry.register(counter("a.b", "", "Help.", "guard", {f"{__name__}:Base": lambda e: ((e.source,), 1)}))
    assert [instrument.name for instrument, _ in registry.feeds_of(Child)] == ["a.b"]
    assert registry.feeds_of(Event) == ()


def test_what_registers_the_metrics_of_an_event_is_loaded_with_its_first(monkeypatch):
    loaded = []
    home = types.ModuleType("events_of_somebody")
    home.__telemetry__ = "metrics_of_somebody"
    monkeypatch.setitem(sys.modules, "events_of_somebody", home)
    monkeypatch.setattr("guardrails.telemetry.instruments.import_module", loaded.append)
    Registry().feeds_of(type("Theirs", (Event,), {"__module__": "events_of_somebody"}))
    Registry().feeds_of(Event)
    assert loaded == ["metrics_of_somebody"]
