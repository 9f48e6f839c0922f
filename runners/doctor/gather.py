"""The room that looks at the world: the kernel's files, the process, Redis, sinks, and the report of the load test.

Nothing is changed. What cannot be read is left open, and the checks say so or are silent.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from guardrails.core.errors import MissingExtra
from guardrails.memory.cgroup import Cgroup, own_cgroups
from guardrails.shared.redis_health import PREFIXES, redis_health
from guardrails.shared.redis_report import RedisReport
from guardrails.shared.redis_server import RedisUnreachable
from runners.config import Config
from runners.doctor import cgroups, load_report
from runners.doctor.facts import Facts, Group, Machine, Reach
from runners.doctor.reach import reach
from runners.doctor.redis import redis_url
from runners.doctor.watching import Address, dsn_address, sentry_dsn

#: What is connected to.
ASKED = ("redis", "sinks")
_OTLP = {"http": 80, "https": 443}
_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc")
_SYS_RESOURCE = 24
#: Files that a folder with a model may have, at most: what is beyond is not counted.
_MOST_FILES = 1000


def gather(
    config: Config | None,
    *,
    pid: int | None = None,
    ask: Collection[str] = ASKED,
    root: Path = Path("/"),
    say: Callable[[str], object] = lambda _: None,
) -> Facts:
    """Look.

    Args:
        config: the file; None: the machine alone.
        pid: the process whose cgroups, variables and limits count; by default this one.
        ask: what is connected to, of ``redis`` and ``sinks``.
        root: where ``proc``, ``sys`` and ``dev`` are; for tests.
        say: called with what takes a while.

    Raises:
        ProcessLookupError: there is no process `pid`. PermissionError: it is somebody else's.
    """
    proc = root / "proc" / ("self" if pid is None else str(pid))
    if pid is not None and not proc.exists():
        raise ProcessLookupError(pid)
    variables = dict(os.environ) if pid is None else _environment(proc)
    machine = look_at_machine(root, proc, variables)
    if config is None:
        return Facts(machine=machine, now=time.time(), environment=variables)
    sinks, redis = asyncio.run(_ask(config, variables, ask, say))
    return Facts(
        machine=machine,
        now=time.time(),
        environment=variables,
        models=_models(config),
        sinks=sinks,
        redis=redis,
        load_test=None if config.load_test is None else load_report.read(config.file(config.load_test.report)),
    )


# What is asked


async def _ask(
    config: Config, variables: Mapping[str, str], ask: Collection[str], say: Callable[[str], object]
) -> tuple[dict[str, Reach], RedisReport | str | None]:
    addresses: dict[str, Address] = {}
    dsn = sentry_dsn(config, variables) if "sinks" in ask else None
    if dsn is not None and isinstance(address := dsn_address(dsn), Address):
        addresses["sentry"] = address
    if "sinks" in ask and config.telemetry is not None and config.telemetry.otel is not None:
        parts = urlsplit(config.telemetry.otel)
        addresses["otel"] = Address(parts.hostname or "", parts.port or _OTLP[parts.scheme], parts.scheme == "https")
    url = redis_url(config, variables) if "redis" in ask else None
    for name in (*addresses, *(["redis"] if url is not None else [])):
        say(f"asking {name}")
    reached, redis = await asyncio.gather(
        asyncio.gather(*(reach(address, variables) for address in addresses.values())), _redis(config, url)
    )
    return dict(zip(addresses, reached, strict=True)), redis


async def _redis(config: Config, url: str | None) -> RedisReport | str | None:
    if config.redis is None or url is None:
        return None
    prefixes = dict.fromkeys((config.redis.prefix, *PREFIXES))
    try:
        return await redis_health(url, prefixes=prefixes, sample=config.redis.sample)
    except (RedisUnreachable, MissingExtra, ValueError) as error:
        return str(error)


def _models(config: Config) -> dict[str, int | None]:
    paths = {getattr(runner, "path", None) for runner in config.runners.values()}
    return {path: _size(config.file(path)) for path in paths if path is not None}


def _size(path: Path) -> int | None:
    try:
        if path.is_dir():
            files = sorted(path.iterdir())[:_MOST_FILES]
            return sum(file.stat().st_size for file in files if file.is_file())
        return path.stat().st_size
    except OSError:
        return None


# The machine


def look_at_machine(root: Path, proc: Path, variables: Mapping[str, str]) -> Machine:
    """What the kernel says. `proc` is the folder of the process."""
    if sys.platform != "linux" and root == Path("/"):
        return _elsewhere(variables)
    meminfo = _fields(root / "proc/meminfo")
    swap = meminfo.get("SwapTotal", 0) * 1024
    limits = _limits(proc)
    shared, shared_free = _shared(root / "dev/shm")
    return Machine(
        system="linux",
        memory=meminfo.get("MemTotal", 0) * 1024,
        swap=swap,
        groups=tuple(_group(group) for group in own_cgroups(proc) if not _is_root(group)),
        manager=_manager(root, proc, variables),
        cores=_cores(proc),
        quota=cgroups.cpu_quota(proc),
        open_files=limits.get("Max open files", (None, None)),
        processes=limits.get("Max processes", (None, None)),
        may_raise=_may_raise(proc),
        tasks=cgroups.task_limit(proc),
        pid_max=_number(root / "proc/sys/kernel/pid_max"),
        huge_pages=_chosen(root / "sys/kernel/mm/transparent_hugepage/enabled"),
        overcommit=_number(root / "proc/sys/vm/overcommit_memory"),
        shared=shared,
        shared_free=shared_free,
        allocator=_allocator(variables),
    )


def _elsewhere(variables: Mapping[str, str]) -> Machine:
    import resource  # noqa: PLC0415 - not on Windows

    import psutil  # noqa: PLC0415 - not needed on Linux

    def limits(which: int) -> tuple[int | None, int | None]:
        soft, hard = resource.getrlimit(which)
        return tuple(None if each == resource.RLIM_INFINITY else each for each in (soft, hard))  # type: ignore[return-value]

    return Machine(
        system=sys.platform,
        memory=int(psutil.virtual_memory().total),
        swap=int(psutil.swap_memory().total),
        cores=os.cpu_count() or 1,
        open_files=limits(resource.RLIMIT_NOFILE),
        processes=limits(resource.RLIMIT_NPROC),
        allocator=_allocator(variables),
    )


def _group(group: Cgroup) -> Group:
    v2 = group.version == 2
    limit, used = group.limit(), group.used()
    file = group.path / ("memory.max" if v2 else "memory.limit_in_bytes")
    if v2:
        swaps = _text(group.path / "memory.swap.max") != "0"
    else:
        both = _number(group.path / "memory.memsw.limit_in_bytes")
        swaps = _text(group.path / "memory.swappiness") != "0" and (both is None or limit is None or both > limit)
    return Group(group.path, group.version, limit, used or 0, writable=os.access(file, os.W_OK), swaps=swaps)


def _is_root(group: Cgroup) -> bool:
    """Whether it is the top of its tree on this machine: v2 has no limit file there, v1 one that means nothing."""
    if group.version == 2:
        return not (group.path / "memory.max").exists()
    return (group.path / "release_agent").exists()  # v1 keeps that file at the root only


def _manager(root: Path, proc: Path, variables: Mapping[str, str]) -> str:
    if "KUBERNETES_SERVICE_HOST" in variables:
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    return cgroups.unit_of(proc)


def _cores(proc: Path) -> int:
    for line in _text(proc / "status").splitlines():
        name, _, value = line.partition(":")
        if name == "Cpus_allowed_list":
            ranges = (each.partition("-") for each in value.strip().split(",") if each)
            return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
    return os.cpu_count() or 1


def _limits(proc: Path) -> dict[str, tuple[int | None, int | None]]:
    """Soft and hard limits, by their names in ``/proc/PID/limits``."""
    found = {}
    for line in _text(proc / "limits").splitlines():
        for name in ("Max open files", "Max processes"):
            if line.startswith(name):
                soft, hard = (None if word == "unlimited" else int(word) for word in line[len(name) :].split()[:2])
                found[name] = (soft, hard)
    return found


def _may_raise(proc: Path) -> bool:
    """Whether it has the capability SYS_RESOURCE."""
    for line in _text(proc / "status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _SYS_RESOURCE & 1)
    return False


def _environment(proc: Path) -> dict[str, str]:
    pairs = (each.partition(b"=") for each in (proc / "environ").read_bytes().split(b"\0") if b"=" in each)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def _allocator(variables: Mapping[str, str]) -> str:
    preloaded = variables.get("LD_PRELOAD", "") + variables.get("DYLD_INSERT_LIBRARIES", "")
    for name in _ALLOCATORS:
        if name in preloaded:
            return name
    if sys.platform != "linux":
        return ""
    try:
        return "glibc" if (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc") else "musl"
    except (OSError, ValueError):
        return "musl"


def _shared(folder: Path) -> tuple[int | None, int | None]:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None, None
    return found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail


def _fields(path: Path) -> dict[str, int]:
    lines = (line.partition(":") for line in _text(path).splitlines())
    return {
        name: int(value.split()[0]) for name, _, value in lines if value.split()[:1] and value.split()[0].isdecimal()
    }


def _chosen(path: Path) -> str | None:
    """The word in brackets."""
    return next((word[1:-1] for word in _text(path).split() if word.startswith("[")), None)


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
