"""Methods: an instance never gets the answer of another one."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref

import pytest

from guardrails.strategies.cache import cache
from guardrails.strategies.cache.key import local_key
from guardrails.strategies.cache.receiver import Receiver

pytestmark = pytest.mark.anyio


class Stored:
    def __init__(self):
        self.kept = {}

    def get(self, key):
        return self.kept.get(key)

    def set(self, key, value, keep):
        self.kept[key] = (value, 0.0)

    def delete(self, key):
        self.kept.pop(key, None)


def logged(fn):
    """A decorator without `functools.wraps`."""

    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


answers = cache(ttl=60, key=lambda self, text="": text)


class Tenant:
    def __init__(self, token):
        self.token = token

    @answers
    def ask(self, text):
        return f"{self.token}: {text}"

    @answers
    async def ask_async(self, text):
        return f"{self.token}: {text}"

    @cache(ttl=60, key=lambda tenant, text: text)
    def named_otherwise(tenant, text):  # noqa: N805
        return f"{tenant.token}: {text}"

    @cache(ttl=60, key=lambda self, text: text)
    @logged
    def over_an_opaque_decorator(self, text):
        return f"{self.token}: {text}"

    @logged
    @cache(ttl=60, key=lambda self, text: text)
    def under_an_opaque_decorator(self, text):
        return f"{self.token}: {text}"

    @cache(ttl=60, key=lambda self, text: text)
    @functools.wraps(lambda self, text: None)
    def over_a_named_one(*args):
        return f"{args[0].token}: {args[1]}"

    @cache(ttl=60, key=lambda self, *, text: text)
    def named_argument(self, *, text):
        return f"{self.token}: {text}"


@pytest.mark.parametrize(
    "method",
    ["ask", "named_otherwise", "over_an_opaque_decorator", "under_an_opaque_decorator", "over_a_named_one"],
)
def test_the_key_function_does_not_merge_instances(method):
    first, second = Tenant("first"), Tenant("second")
    asked = [getattr(each, method)("q") for each in (first, second, first, second)]
    assert asked == ["first: q", "second: q"] * 2


async def test_nor_of_async_methods_nor_by_keyword():
    first, second = Tenant("first"), Tenant("second")
    assert [await each.ask_async("q") for each in (first, second)] == ["first: q", "second: q"]
    assert [Tenant.ask(self=each, text="q") for each in (first, second)] == ["first: q", "second: q"]
    assert [each.named_argument(text="q") for each in (first, second)] == ["first: q", "second: q"]


def test_a_function_that_becomes_a_method_later():
    @cache(ttl=60, key=lambda tenant, text: text)
    def late(tenant, text):
        return f"{tenant.token}: {text}"

    class Other(Tenant):
        pass

    Other.late = late
    assert [Other("first").late("q"), Other("second").late("q")] == ["first: q", "second: q"]


def test_an_instance_still_gets_its_own_answers_and_can_forget_them():
    layer = cache(ttl=60, key=lambda self, text: text)

    class Counter:
        made = 0

        @layer
        def ask(self, text):
            self.made += 1
            return self.made

    one, other = Counter(), Counter()
    assert [one.ask("q"), one.ask("q"), other.ask("q"), one.ask("r")] == [1, 1, 1, 2]
    layer.invalidate(one.ask, "q")
    assert [one.ask("q"), other.ask("q")] == [3, 1]
    layer.invalidate(Counter.ask, other, "q")
    assert other.ask("q") == 2


def test_instances_that_are_equal_or_cannot_be_hashed_are_still_two():
    class Equal:
        def __init__(self, token):
            self.token = token

        def __eq__(self, other):
            return True

        __hash__ = None

        @cache(ttl=60, key=lambda self, text: text)
        def ask(self, text):
            return self.token

    first, second = Equal("first"), Equal("second")
    assert [first.ask("q"), second.ask("q"), first.ask("q")] == ["first", "second", "first"]


def test_one_that_gets_the_id_of_a_dead_one_gets_nothing_of_it():
    first, second = Tenant("first"), Tenant("second")
    dead, living = Receiver(first), Receiver(second)
    dead._hash = living._hash = 1  # as if both had been at the same address
    entries = {("f", "q", dead): "first"}
    del first
    gc.collect()
    assert dead.of() is None
    assert entries.get(("f", "q", living)) is None
    assert entries.pop(("f", "q", dead)) == "first"  # the entry itself can still be dropped
    assert (dead == 1) is False


def test_entries_do_not_keep_instances_alive():
    tenant = Tenant("first")
    tenant.ask("q")
    dead = weakref.ref(tenant)
    del tenant
    gc.collect()
    assert dead() is None


def test_what_cannot_be_held_weakly_is_held():
    class Slim:
        __slots__ = ("token",)

        def __init__(self, token):
            self.token = token

        @cache(ttl=60, key=lambda self, text: text)
        def ask(self, text):
            return self.token

    # Each one dies as soon as it has answered: the next may get its address.
    assert [Slim(number).ask("q") for number in range(100)] == list(range(100))


def test_class_methods_belong_to_the_class_and_static_ones_to_none():
    class Base:
        name = "base"
        made = 0

        @classmethod
        @cache(ttl=60, key=lambda cls, text: text)
        def ask(cls, text):
            return cls.name

        @staticmethod
        @cache(ttl=60, key=lambda text: text)
        def plain(text):
            Base.made += 1
            return text.upper()

        @staticmethod
        @cache(ttl=60, key=lambda other, text: text)
        def of(other, text):
            return other.name

    class Sub(Base):
        name = "sub"

    assert [Base.ask("q"), Sub.ask("q"), Sub().ask("q"), Base.ask("q")] == ["base", "sub", "sub", "base"]
    assert [Base.plain("q"), Sub.plain("q"), Sub().plain("q"), Base.made] == ["Q", "Q", "Q", 1]
    one, other = Base(), Sub()
    assert [Base.of(one, "q"), Base.of(other, "q")] == ["base", "base"]  # a plain function: `key` alone decides


def test_an_override_and_what_it_overrides_are_two():
    layer = cache(ttl=60, key=lambda self, text: text)

    class Base:
        @layer
        def ask(self, text):
            return "base"

    class Sub(Base):
        @layer
        def ask(self, text):
            return "sub of " + super().ask(text)

    sub = Sub()
    assert [sub.ask("q"), sub.ask("q")] == ["sub of base"] * 2


def test_bound_methods_and_functions_that_take_objects_are_as_they_were():
    def ask(self_or_not, text):
        return text

    class Plain:
        def __init__(self, token):
            self.token = token

        def ask(self, text):
            return f"{self.token}: {text}"

    layer = cache(ttl=60, key=lambda text: text)
    first, second = layer(Plain("first").ask), layer(Plain("second").ask)
    assert [first("query"), second("query"), first(b"query".decode())] == [
        "first: query",
        "second: query",
        "first: query",
    ]
    assert layer.snapshot().hits == 1
    by_text = cache(ttl=60, key=lambda request, text: text)
    guarded = by_text(ask)
    assert [guarded(object(), "q"), guarded(object(), "q")] == ["q", "q"]
    assert by_text.snapshot().hits == 1


def test_told_so_instances_share():
    made = []

    class Client:
        def __init__(self, region):
            self.region = region

        @cache(ttl=60, key=lambda self, text: (self.region, text), per_instance=False)
        def ask(self, text):
            made.append(self.region)
            return self.region

    assert [Client(region).ask("q") for region in ("eu", "us", "eu", "us")] == ["eu", "us", "eu", "us"]
    assert made == ["eu", "us"]


class Remote:
    """Stands in a module, as a store needs it."""

    store = Stored()

    @cache(ttl=60, key=lambda self, text: text, store=store)
    def of_the_instance(self, text):
        return "no"

    @classmethod
    @cache(ttl=60, key=lambda cls, text: text, store=store)
    def of_the_class(cls, text):
        return cls.__name__

    @cache(ttl=60, key=lambda self, text: text, store=store, per_instance=False)
    def shared(self, text):
        return "shared"


class Further(Remote):
    pass


def test_a_store_refuses_what_only_this_process_tells_apart():
    with pytest.raises(TypeError, match=r"instances of Remote apart .* per_instance=False"):
        Remote().of_the_instance("q")
    assert [Remote.of_the_class("q"), Further.of_the_class("q")] == ["Remote", "Further"]
    assert Remote().shared("q") == "shared"
    assert len(Remote.store.kept) == 3


@pytest.mark.parametrize(("given", "text"), [(1, "per_instance takes True or False"), (False, "needs key=")])
def test_what_makes_no_sense_is_refused(given, text):
    with pytest.raises(TypeError, match=text):
        cache(ttl=60, per_instance=given)


@dataclasses.dataclass
class Client:
    url: str
    token: dataclasses.InitVar[str] = ""

    def __post_init__(self, token):
        self._token = token


@dataclasses.dataclass(slots=True)
class Slotted:
    url: str


class SlottedWithMore(Slotted):
    __slots__ = ("token",)

    def __init__(self, url, token):
        super().__init__(url)
        self.token = token


@dataclasses.dataclass(frozen=True)
class Lazy:
    url: str

    @functools.cached_property
    def host(self):
        return self.url.upper()


@pytest.mark.parametrize("cls", [Client, SlottedWithMore])
def test_what_a_dataclass_holds_beside_its_fields_tells_it_apart(cls):
    layer = cache(ttl=60)

    @layer
    def ask(client):
        return getattr(client, "_token", "") or client.token

    assert [ask(cls("u", "first")), ask(cls("u", "second")), ask(cls("u", "first"))] == ["first", "second", "first"]
    assert layer.snapshot().hits == 1


def test_what_is_computed_from_the_fields_does_not():
    lazy, fresh = Lazy("u"), Lazy("u")
    assert lazy.host == "U"
    assert local_key(ask_nothing, (lazy,), {}) == local_key(ask_nothing, (fresh,), {})


def ask_nothing():
    pass
