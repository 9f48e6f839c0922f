"""From findings to alerts: raised once, repeated seldom, cleared when over, and never a flood."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from guardrails.memory.monitor.alerts import MOST_ACTIVE, Alerts
from guardrails.memory.monitor.finding import Finding
from guardrails.memory.signals import AlertCleared, AlertRaised


def finding(alert="memory_high", source="host", severity="warning", **values):
    return Finding(alert, source, severity, "it is high", "look", values)


def alerts(**options):
    return Alerts(wall=lambda: 1e9, **options)


def test_an_alert_is_raised_once_and_cleared_once():
    one = alerts()
    assert one.settle(0, []) == []
    assert one.settle(1, [finding(used=5)]) == [
        AlertRaised("host", "memory_high", "warning", "it is high", "look", {"used": 5})
    ]
    (active,) = one.active
    assert (active.alert, active.source, active.since, active.announced) == ("memory_high", "host", 1e9, True)
    assert one.settle(2, [finding(used=6)]) == []
    assert one.active[0].values == {"used": 6}  # what is active is told with its last numbers
    assert one.settle(11, []) == [AlertCleared("host", "memory_high", 10)]
    assert one.active == ()


def test_one_that_gets_worse_is_told_again_and_not_when_it_gets_better():
    one = alerts()
    one.settle(0, [finding()])
    assert [news.severity for news in one.settle(1, [finding(severity="critical")])] == ["critical"]
    assert one.settle(2, [finding()]) == []
    assert one.settle(3, [finding(severity="critical")]) == []
    assert one.active[0].severity == "critical"


def test_a_flutter_is_told_once_within_the_quiet_time():
    one = alerts(quiet=300)
    told = Counter(
        type(news).__name__ for second in range(300) for news in one.settle(second, [finding()][second % 2 :])
    )
    assert told == {"AlertRaised": 1, "AlertCleared": 1}
    assert one.withheld == 149
    assert [type(news).__name__ for news in one.settle(300, [finding()])] == ["AlertRaised"]


def test_what_was_kept_back_is_told_later_if_it_is_still_so():
    one = alerts(quiet=300)
    one.settle(0, [finding()])
    one.settle(10, [])
    assert one.settle(20, [finding()]) == []
    assert one.active[0].announced is False
    assert one.settle(299, [finding()]) == []
    assert len(one.settle(300, [finding()])) == 1
    assert one.active[0].announced is True


def test_only_what_was_told_is_cleared_for_all_to_hear():
    one = alerts(quiet=300)
    one.settle(0, [finding()])
    one.settle(10, [])
    one.settle(20, [finding()])
    assert one.settle(30, []) == []


def test_one_that_stays_is_told_again_after_an_hour():
    one = alerts(remind=3600)
    told = [second for second in range(0, 8000, 10) if one.settle(second, [finding()])]
    assert told == [0, 3600, 7200]


def test_a_thousand_alerts_are_not_a_thousand_announcements():
    one = alerts(burst=20)
    flood = [finding(source=f"s{number}") for number in range(1000)]
    told = [len(one.settle(second, flood)) for second in range(121)]
    assert sum(told[:60]) == 20
    assert sum(told) == 60
    assert len(one.active) == MOST_ACTIVE
    assert len({news.source for news in one.settle(180, flood)}) == 20


def test_sources_and_alerts_are_kept_apart():
    one = alerts()
    news = one.settle(0, [finding(), finding(source="/cg"), finding(alert="memory_growth")])
    assert {(each.alert, each.source) for each in news} == {
        ("memory_high", "host"),
        ("memory_high", "/cg"),
        ("memory_growth", "host"),
    }


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["warning", "critical"])), max_size=3), max_size=60
    )
)
def test_whatever_comes_the_rules_hold(looks):
    one = alerts(quiet=10, remind=40, burst=5)
    raised, open_now, last, times = {}, set(), {}, []
    for second, look in enumerate(looks):
        found = dict(look)
        for news in one.settle(second, [finding(source=source, severity=severity) for source, severity in look]):
            if isinstance(news, AlertCleared):
                open_now.remove(news.source)
                continue
            assert news.source in found
            worse = news.source in open_now and raised[news.source] == "warning" and news.severity == "critical"
            assert worse or second - last.get(news.source, -100) >= 10
            open_now.add(news.source)
            raised[news.source], last[news.source] = news.severity, second
            times.append(second)
        assert open_now == {alert.source for alert in one.active if alert.announced}
        assert {alert.source for alert in one.active} == set(found)
    assert all(sum(start <= time < start + 60 for time in times) <= 5 for start in times)


def test_memory_of_ended_alerts_is_bounded():
    one = alerts(burst=10**9)
    for number in range(3000):
        one.settle(number, [finding(source=str(number))])
    assert len(one._last) <= 1024
    assert len(one._recent) <= 60
