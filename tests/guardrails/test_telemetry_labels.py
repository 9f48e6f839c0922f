from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.guard import Call
from guardrails.core.names import KeyedName, public
from guardrails.errors import CircuitOpen
from guardrails.gates.breaker import breaker
from guardrails.gates.keyed import keyed
from guardrails.telemetry.labels import MAX_LENGTH, OTHER, Labels


def test_the_first_values_are_kept_and_the_rest_is_other():
    labels = Labels(2)
    assert [labels.value("guard", name) for name in ("a", "b", "c", "a", "b", "d")] == [
        "a",
        "b",
        OTHER,
        "a",
        "b",
        OTHER,
    ]
    assert labels.value("reason", "c") == "c"  # every label has values of its own


def test_a_guard_that_was_made_for_a_key_has_the_name_of_its_family():
    labels = Labels(2)
    users = [KeyedName(f"user-{number}", "users") for number in range(1000)]
    assert {labels.value("guard", name) for name in users} == {"users"}
    assert labels.value("guard", "openai") == "openai"


def test_a_long_value_is_cut_and_anything_is_made_a_string():
    assert Labels().value("guard", "x" * 1000) == "x" * MAX_LENGTH
    assert Labels().value("worker", 3) == "3"


def test_there_are_as_many_values_as_labels():
    assert Labels().values(("guard", "reason"), ("a", "open")) == ("a", "open")
    with pytest.raises(ValueError, match="zip"):
        Labels().values(("guard", "reason"), ("a",))


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "9"])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match="limit takes a whole number of at least 1"):
        Labels(limit)


@given(st.integers(1, 5), st.lists(st.text(max_size=3)))
def test_never_more_values_than_the_limit_and_other(limit, values):
    labels = Labels(limit)
    seen = [labels.value("guard", value) for value in values]
    assert len(set(seen) - {OTHER}) <= limit
    assert all(told in (value, OTHER) for told, value in zip(seen, values, strict=True))
    assert seen == [labels.value("guard", value) for value in values] or len(set(values)) > limit


def test_a_keyed_name_is_a_string_that_knows_its_family():
    name = KeyedName("ada", "users")
    assert (name, name.family, public(name), public("ada")) == ("ada", "users", "users", "ada")
    assert hash(name) == hash("ada")
    again = pickle.loads(pickle.dumps(name))
    assert (again, again.family) == ("ada", "users")


def test_keyed_marks_the_names_of_its_guards():
    guards = keyed(lambda user: breaker(name=user, fail_max=1), key=lambda user: user, name="users")
    guard = guards.guard_of("ada")
    assert (guard.name, public(guard.name)) == ("ada", "users")
    guard.force_open()
    with pytest.raises(CircuitOpen) as caught:
        guards.try_enter(Call(("ada",), {}))
    assert (caught.value.guard, public(caught.value.guard)) == ("ada", "users")
    assert str(caught.value).startswith("ada: ")


def test_a_gate_whose_name_cannot_be_set_is_left_alone():
    class Fixed(type(breaker())):
        name = property(lambda self: "fixed", lambda self, value: None)

    made = breaker()
    made.__class__ = Fixed
    assert keyed(lambda key: made, key=lambda key: key).guard_of("k").name == "fixed"
