"""A bucket for each key, limits by tier, and a table that stays bounded."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.gates.limiter import RateLimited, limiter
from guardrails.testing import FakeClock


def by_key(clock, **options):
    return limiter(name="gate", requests=2, per=10, key=lambda user: user, max_wait=1, clock=clock, **options)


@pytest.mark.anyio
async def test_each_key_has_its_own_bucket(clock):
    calls = []

    @by_key(clock)
    async def work(user):
        calls.append(user)

    for user in ("ada", "ada", "grace", "grace"):
        await work(user)
    for user in ("ada", "grace"):
        with pytest.raises(RateLimited) as refused:
            await work(user)
        assert refused.value.retry_after == 5
    await work("mary")
    assert calls == ["ada", "ada", "grace", "grace", "mary"]


@pytest.mark.anyio
async def test_each_key_has_its_own_queue(clock, idle):
    gate = limiter(requests=1, per=10, key=lambda user: user, queue=1, clock=clock)
    for user in ("ada", "grace"):
        gate.try_acquire(key=user)
    served = []

    async def one(user):
        await gate.acquire(key=user)
        served.append(user)

    async with anyio.create_task_group() as tasks:
        for user in ("ada", "grace"):
            tasks.start_soon(one, user)
            await idle()
        assert gate.waiting == 2
        with pytest.raises(RateLimited) as refused:
            await gate.acquire(key="ada")
        assert (refused.value.reason, refused.value.retry_after) == ("queue_full", 20)
        clock.advance(10)
    assert sorted(served) == ["ada", "grace"]


def test_by_hand_one_says_whose(clock):
    gate = by_key(clock)
    assert gate.try_acquire(2, key="ada") is not None
    assert gate.try_acquire(key="ada") is None
    assert (gate.has_capacity(2, key="ada"), gate.has_capacity(2, key="grace")) == (False, True)
    assert gate.available(key="ada") == {"requests": 0}
    assert gate.keys == 1  # grace was looked at only
    with pytest.raises(TypeError, match="gate has a key: say which"):
        gate.try_acquire()
    with pytest.raises(TypeError, match="gate has no tier: give none"):
        gate.try_acquire(key="ada", tier="free")
    with pytest.raises(TypeError, match="gate: key must be hashable"):
        gate.try_acquire(key=[])
    with pytest.raises(TypeError, match="gate has no key: give none"):
        limiter(name="gate", requests=1, clock=clock).try_acquire(key="ada")


def test_a_block_has_no_key(clock):
    with pytest.raises(TypeError, match="a block has none: use acquire"), by_key(clock):
        pass


def test_one_key_is_drained_or_reset_or_all_are(clock):
    gate = by_key(clock)
    for user in ("ada", "grace"):
        gate.try_acquire(key=user)
    gate.drain(3, key="ada")
    assert (gate.has_capacity(key="ada"), gate.has_capacity(key="grace")) == (False, True)
    gate.drain(4)
    assert not gate.has_capacity(key="grace")
    gate.reset(key="grace")
    assert (gate.has_capacity(key="ada"), gate.has_capacity(2, key="grace")) == (False, True)
    gate.reset()
    assert gate.has_capacity(2, key="ada")


def test_there_are_at_most_so_many_keys_and_full_buckets_go_first(clock):
    gate = by_key(clock, max_keys=3)
    for user in ("used", "full", "newest"):
        gate.try_acquire(0 if user == "full" else 2, key=user)
    gate.try_acquire(key="other")
    assert gate.keys == 3
    assert gate.available(key="used") == {"requests": 0}
    gate.try_acquire(key="another")  # none is full now: the one that was used longest ago
    assert gate.keys == 3
    assert gate.available(key="used") == {"requests": 2}
    assert gate.available(key="newest") == {"requests": 0}


@pytest.mark.anyio
async def test_a_key_with_calls_that_wait_is_never_forgotten(clock, idle):
    gate = limiter(requests=1, per=10, key=lambda user: user, max_keys=1, clock=clock)
    gate.try_acquire(key="ada")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: gate.acquire(key="ada"))
        await idle()
        gate.try_acquire(key="grace")
        assert (gate.keys, gate.waiting) == (2, 1)
        clock.advance(10)
    gate.try_acquire(key="mary")
    assert gate.keys == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=60), st.integers(1, 5))
def test_the_table_never_outgrows_its_bound(story, most):
    clock = FakeClock()
    gate = by_key(clock, max_keys=most)
    for user, seconds in story:
        gate.try_acquire(key=user)
        clock.advance(seconds)
        assert gate.keys <= most


# Tiers


def by_tier(clock, **options):
    return limiter(
        name="gate",
        tiers={"free": 1, "pro": {"requests": 6, "burst": 3}},
        per=6,
        key=lambda user, plan: user,
        tier=lambda user, plan: plan,
        max_wait=0.5,
        clock=clock,
        **options,
    )


@pytest.mark.anyio
async def test_each_tier_has_its_own_limit(clock):
    @by_tier(clock)
    async def work(user, plan):
        pass

    await work("ada", "free")
    with pytest.raises(RateLimited) as refused:
        await work("ada", "free")
    assert refused.value.retry_after == 6
    for _ in range(3):
        await work("grace", "pro")
    with pytest.raises(RateLimited) as refused:
        await work("grace", "pro")
    assert refused.value.retry_after == 1
    await work("ada", "pro")  # one who has paid meanwhile starts afresh


@pytest.mark.anyio
async def test_an_unknown_tier_is_an_error_or_the_default(clock):
    @by_tier(clock)
    async def strict(user, plan):
        pass

    with pytest.raises(ValueError, match=r"gate: there is no tier 'gold', only 'free', 'pro'; default_tier would"):
        await strict("ada", "gold")

    gate = by_tier(clock, default_tier="free")

    @gate
    async def lenient(user, plan):
        pass

    await lenient("ada", "gold")
    assert gate.available(key="ada", tier="free") == {"requests": 0}


def test_tiers_without_keys(clock):
    gate = limiter(name="gate", tiers={"free": 1, "pro": 2}, per=1, tier=lambda plan: plan, clock=clock)
    assert gate.try_acquire(tier="free") is not None
    assert gate.try_acquire(tier="free") is None
    assert gate.try_acquire(2, tier="pro") is not None
    with pytest.raises(TypeError, match="gate has a tier: say which"):
        gate.available()
    with pytest.raises(AttributeError, match="gate has several rates"):
        _ = gate.max_rate


def test_tiers_describe_themselves(clock):
    text = by_tier(clock).describe()
    assert (
        text
        == "limiter 'gate': free 1 requests; pro 6 requests (burst 3) per 6 s for each key, 1000 may wait for 0.5 s"
    )
