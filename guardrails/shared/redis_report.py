"""What a Redis holds, and what follows from it. Pure: numbers in, findings out.

::

    INFO, SCAN, PTTL, MEMORY USAGE ──▶ Numbers, Keys ──▶ judge ──▶ findings: ok, warning or failure, why, the mend
    (redis_health.py)                                              │
                                                                   └──▶ RedisReport
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from guardrails.core.sizes import format_size

Level = Literal["ok", "warning", "failure"]

#: How full a Redis may be that evicts nothing.
HIGH, CRITICAL = 0.80, 0.95
#: Memory between what Redis uses and what it has of the system, from which on fragmentation is worth a word.
_FRAGMENTED, _NOTICEABLE = 1.5, 64 << 20
#: A single key with this share of everything, and at least so many bytes, is worth one too.
_BIG_SHARE, _BIG = 0.10, 8 << 20
_MIB = 1 << 20
#: Seconds that the mend for keys without a TTL gives them.
_DAY = 86_400


@dataclass(frozen=True, slots=True)
class RedisFinding:
    """One line of a report.

    Attributes:
        check: what was looked at: ``memory``, ``policy``, ``own_ttl``, ``ttl``, ``biggest``, ``fragmentation``,
            ``persistence`` or ``role``.
        level: ``ok``, ``warning`` or ``failure``.
        why: what was seen and what it means, a sentence with its numbers.
        mend: the command that mends it, for a shell; None when there is nothing to mend.
    """

    check: str
    level: Level
    why: str
    mend: str | None = None


@dataclass(frozen=True, slots=True)
class BigKey:
    """A large key. `name` is masked unless names were asked for; `size` is in bytes, `ttl` in seconds or None."""

    name: str
    size: int
    ttl: float | None


@dataclass(frozen=True, slots=True)
class Keys:
    """What was seen of the keys.

    Attributes:
        total: keys of the database.
        looked: of these, those that were looked at.
        unlimited: of these, those without a TTL. `own_unlimited` and `fixed` are not among them.
        own: keys of this toolkit, and `own_unlimited` of them without a TTL.
        fixed: keys of pybreaker's storage: four for each breaker, which it keeps without a TTL.
        complete: whether every key was looked at.
        biggest: the largest that were seen, the largest first.
    """

    total: int
    looked: int = 0
    unlimited: int = 0
    own: int = 0
    own_unlimited: int = 0
    fixed: int = 0
    complete: bool = True
    biggest: tuple[BigKey, ...] = ()


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the server says of itself. Sizes in bytes.

    Attributes:
        version: of the server.
        role: ``master`` or ``slave``, in Redis' words.
        used: what its data and buffers take, and `peak` the most that was.
        limit: ``maxmemory``; None for no limit.
        policy: ``maxmemory-policy``.
        resident: what the process has of the system; 0 when it does not say.
        system: memory of the machine that it runs on; 0 when it does not say.
        evicted, expired: keys that went, for want of memory and because their time was over, since its start.
        persistent: whether it writes snapshots or a log, for which it forks; None when it does not say.
        saved: whether its last snapshot and its last rewrite of the log went well.
        replicas: that follow it.
    """

    version: str
    role: str
    used: int
    peak: int
    limit: int | None
    policy: str
    resident: int
    system: int
    evicted: int
    expired: int
    persistent: bool | None
    saved: bool
    replicas: int

    @property
    def fragmentation(self) -> float | None:
        """What the process has of the system, over what it uses; None when it does not say."""
        return self.resident / self.used if self.resident and self.used else None


@dataclass(frozen=True, slots=True)
class RedisReport:
    """How a Redis does: what was seen, and the findings."""

    numbers: Numbers
    keys: Keys
    findings: tuple[RedisFinding, ...]

    @property
    def level(self) -> Level:
        """The worst of the findings."""
        levels = {finding.level for finding in self.findings}
        return "failure" if "failure" in levels else "warning" if "warning" in levels else "ok"


def judge(numbers: Numbers, keys: Keys, prefixes: tuple[str, ...], cli: str = "redis-cli") -> RedisReport:
    """The report. `prefixes` are those of this toolkit's own keys, `cli` the command that reaches the server."""
    found = _findings(numbers, keys, prefixes)
    if cli != "redis-cli":
        found = (
            finding if finding.mend is None else replace(finding, mend=finding.mend.replace("redis-cli", cli))
            for finding in found
        )
    return RedisReport(numbers, keys, tuple(found))


def _findings(numbers: Numbers, keys: Keys, prefixes: tuple[str, ...]) -> Iterator[RedisFinding]:
    yield _memory(numbers)
    yield _policy(numbers)
    yield _own_ttl(keys, prefixes)
    yield _ttl(numbers, keys)
    if keys.biggest:
        yield _biggest(numbers, keys.biggest[0])
    if numbers.fragmentation is not None:
        yield _fragmentation(numbers, numbers.fragmentation)
    yield _persistence(numbers)
    if numbers.role != "master":
        yield RedisFinding("role", "ok", "a replica: its primary decides on expiry and eviction, so check that one too")


# Memory


def _memory(numbers: Numbers) -> RedisFinding:
    used, limit = numbers.used, numbers.limit
    if limit is None:
        why = f"it holds {format_size(used)} and has no maxmemory: it grows until the kernel kills it"
        return RedisFinding("memory", "failure", why, _set("maxmemory", _room_for(numbers)))
    share = used / limit
    why = f"{format_size(used)} of {format_size(limit)}, {share:.0%}"
    if numbers.policy.startswith("allkeys"):
        return RedisFinding("memory", "ok", f"{why}; what is used least makes room ({numbers.evicted:,} evicted)")
    if share < HIGH:
        return RedisFinding("memory", "ok", why)
    level: Level = "failure" if share >= CRITICAL else "warning"
    return RedisFinding(
        "memory", level, f"{why}: when it is full, writes fail", _set("maxmemory", _whole_mib(used / 0.6))
    )


def _policy(numbers: Numbers) -> RedisFinding:
    if numbers.policy == "noeviction":
        full = numbers.limit is not None and numbers.used >= HIGH * numbers.limit
        why = "noeviction: at maxmemory every write is refused, that of a cache too"
        return RedisFinding("policy", "failure" if full else "warning", why, _set("maxmemory-policy", "allkeys-lru"))
    what = "any key" if numbers.policy.startswith("allkeys") else "a key with a TTL"
    return RedisFinding("policy", "ok", f"{numbers.policy}: at maxmemory {what} makes room")


def _fragmentation(numbers: Numbers, ratio: float) -> RedisFinding:
    difference = numbers.resident - numbers.used
    has = f"the process has {format_size(numbers.resident)} for {format_size(numbers.used)} of data, {ratio:.2f} times"
    if ratio > _FRAGMENTED and difference > _NOTICEABLE:
        why = f"{has}: {format_size(difference)} is lost to fragmentation, on top of maxmemory"
        return RedisFinding("fragmentation", "warning", why, _set("activedefrag", "yes"))
    if -difference > _NOTICEABLE:
        why = f"{has}: the rest is swapped out, and each look at it waits for the disk"
        return RedisFinding("fragmentation", "warning", why, _set("maxmemory", _whole_mib(numbers.resident)))
    return RedisFinding("fragmentation", "ok", has)


def _persistence(numbers: Numbers) -> RedisFinding:
    if not numbers.saved:
        why = "its last save failed, mostly because the fork found no memory: by default it then refuses writes"
        return RedisFinding("persistence", "failure", why, "sysctl -w vm.overcommit_memory=1 && redis-cli BGSAVE")
    if not numbers.persistent:
        return RedisFinding("persistence", "ok", "it saves nothing, so it never forks")
    limit = numbers.limit or numbers.peak
    if numbers.system and limit * 2 > numbers.system:
        why = (
            f"it saves by a fork, which under writes can need as much again: {format_size(limit)} twice is more than "
            f"the {format_size(numbers.system)} of its machine"
        )
        return RedisFinding("persistence", "warning", why, _set("maxmemory", _whole_mib(numbers.system * 0.4)))
    return RedisFinding("persistence", "ok", "it saves by a fork, and there is memory for one")


# Keys


def _own_ttl(keys: Keys, prefixes: tuple[str, ...]) -> RedisFinding:
    fixed = f"; {keys.fixed} of breakers' shared state, which are as many as there are" if keys.fixed else ""
    if keys.own_unlimited:
        why = f"{keys.own_unlimited:,} of {keys.own:,} keys of this toolkit have no TTL: nothing ever frees them"
        mend = " ; ".join(_expire(f"redis-cli --scan --pattern {shlex.quote(prefix + '*')}") for prefix in prefixes)
        return RedisFinding("own_ttl", "failure", why, mend)
    if not keys.own:
        return RedisFinding("own_ttl", "ok", f"no key of this toolkit was seen{fixed}")
    seen = "all" if keys.complete else "those that were seen of the"
    return RedisFinding("own_ttl", "ok", f"{seen} {keys.own:,} keys of this toolkit have a TTL{fixed}")


def _ttl(numbers: Numbers, keys: Keys) -> RedisFinding:
    others = keys.looked - keys.own - keys.fixed
    seen = f"{others:,} other keys" if keys.complete else f"{others:,} other keys that were seen, of {keys.total:,}"
    if not keys.unlimited:
        return RedisFinding("ttl", "ok", f"all of the {seen} have a TTL")
    share = f"{keys.unlimited:,} of the {seen} have no TTL"
    if numbers.policy.startswith("allkeys") and numbers.limit is not None:
        return RedisFinding("ttl", "ok", f"{share}; {numbers.policy} evicts them at maxmemory")
    why = f"{share}, and nothing else frees them: set one where they are written (SET key value EX {_DAY})"
    return RedisFinding("ttl", "warning", why, _expire("redis-cli --scan | grep -v ':pybreaker:'"))


def _biggest(numbers: Numbers, key: BigKey) -> RedisFinding:
    share = key.size / numbers.used if numbers.used else 0.0
    why = f"the largest key that was seen, {key.name}, holds {format_size(key.size)}"
    if key.size < _BIG or share < _BIG_SHARE:
        return RedisFinding("biggest", "ok", why)
    why += f", {share:.0%} of everything: each whole read of it holds up all other clients. Split it"
    return RedisFinding("biggest", "warning", why, "redis-cli --memkeys")


# Mends


def _set(name: str, value: object) -> str:
    return f"redis-cli CONFIG SET {name} {value}"


def _expire(names: str) -> str:
    """A loop for a shell that gives the keys that `names` prints a TTL, if they have none."""
    return f'{names} | while read -r key; do [ "$(redis-cli TTL "$key")" = -1 ] && redis-cli EXPIRE "$key" {_DAY}; done'


def _room_for(numbers: Numbers) -> int:
    """A sensible maxmemory: twice what it holds, at least 256 MiB, at most 60 % of its machine."""
    wanted = max(numbers.used * 2, 256 * _MIB)
    return _whole_mib(min(wanted, max(numbers.system * 0.6, numbers.used * 1.25)) if numbers.system else wanted)


def _whole_mib(size: float) -> int:
    return -(-int(size) // _MIB) * _MIB
