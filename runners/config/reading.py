"""Reads ``runners.toml``, and says what is wrong with it: where, what, and what was probably meant."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from guardrails import limiter
from guardrails.core.sizes import format_size
from runners.config.engines import ENGINES, RunnerSection
from runners.config.sections import (
    AlertsSection,
    EndpointSection,
    FleetSection,
    LoadTestSection,
    MachineSection,
    RedisSection,
    ServiceSection,
    TelemetrySection,
    TierSection,
)
from runners.config.values import Size

#: A complete file with comments.
EXAMPLE = Path(__file__).with_name("example.toml")
#: Larger than any that a person writes.
_MOST = 1 << 20
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a table",
    "null": "nothing",
}


class ConfigError(ValueError):
    """The file cannot be used. `problems` has one line for each thing that is wrong, each with its dotted path."""

    def __init__(self, file: str, problems: Iterable[str]) -> None:
        self.file = file
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{file}: {problem}" for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Config:
    """What ``runners.toml`` says. A table that is missing is None, or empty where it holds named ones.

    Attributes:
        path: the file, if it was one; paths in it are taken from its folder.
    """

    runners: Mapping[str, RunnerSection] = field(default_factory=dict)
    endpoints: Mapping[str, EndpointSection] = field(default_factory=dict)
    services: Mapping[str, ServiceSection] = field(default_factory=dict)
    tiers: Mapping[str, TierSection] = field(default_factory=dict)
    machine: MachineSection = field(default_factory=MachineSection)
    fleet: FleetSection | None = None
    redis: RedisSection | None = None
    telemetry: TelemetrySection | None = None
    alerts: AlertsSection | None = None
    load_test: LoadTestSection | None = None
    path: Path | None = None

    @property
    def in_fleet(self) -> frozenset[str]:
        """The names of the runners that share the fleet's budget."""
        if self.fleet is None:
            return frozenset()
        return frozenset(self.fleet.runners or self.runners)

    def file(self, path: str) -> Path:
        """A path of the file, taken from its folder."""
        return (Path() if self.path is None else self.path.parent) / path


_NAMED: dict[str, type[msgspec.Struct]] = {
    "runners": RunnerSection,  # and of these the one of its engine
    "endpoints": EndpointSection,
    "services": ServiceSection,
    "tiers": TierSection,
}
_SINGLE: dict[str, type[msgspec.Struct]] = {
    "machine": MachineSection,
    "fleet": FleetSection,
    "redis": RedisSection,
    "telemetry": TelemetrySection,
    "alerts": AlertsSection,
    "load_test": LoadTestSection,
}


def load(path: str | os.PathLike[str]) -> Config:
    """Read a file.

    Raises:
        ConfigError: it cannot be read, or says something that it may not; each line names the place.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(_MOST + 1)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from error
    if len(content) > _MOST:
        raise ConfigError(str(path), [f"is larger than {format_size(_MOST)}"])
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), [f"is not UTF-8 at byte {error.start}"]) from error
    return parse(text, path)


def parse(text: str, path: str | os.PathLike[str] | None = None) -> Config:
    """Read a text. `path` names it in errors, and its folder is where paths begin.

    Raises:
        ConfigError: see `load`.
    """
    name = "the configuration" if path is None else os.fspath(path)
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, [f"is not TOML: {error}"]) from error
    problems: list[str] = []
    found: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _NAMED and key not in _SINGLE:
            problems.append(f"{key}: there is no such table{_nearest(key, (*_NAMED, *_SINGLE))}")
        elif not isinstance(value, dict) or (
            key in _NAMED and not all(isinstance(each, dict) for each in value.values())
        ):
            what = f"[{key}.NAME] with a name of yours" if key in _NAMED else f"[{key}]"
            problems.append(f"{key}: is a table, written as {what}")
        elif key in _NAMED:
            found[key] = {each: _table(key, table, f"{key}.{each}", problems) for each, table in value.items()}
        else:
            found[key] = _table(key, value, key, problems)
    if not problems:
        if path is not None:
            folder = Path(path).absolute().parent
            found["runners"] = {each: section.within(folder) for each, section in found.get("runners", {}).items()}
        config = Config(**found, path=None if path is None else Path(path).absolute())
        problems += _crossed(config)
        if not problems:
            return config
    raise ConfigError(name, problems)


# One table


def _table(section: str, table: dict[str, Any], path: str, problems: list[str]) -> Any:
    """The section, or None with what is wrong noted."""
    kind = _NAMED.get(section) or _SINGLE[section]
    if section == "runners":
        table = dict(table)
        engine = table.pop("engine", None)
        if not isinstance(engine, str) or engine not in ENGINES:
            known = ", ".join(map(repr, ENGINES))
            problems.append(
                f"{path}.engine: takes one of {known}" + (f", not {engine!r}" if engine is not None else "")
            )
            return None
        kind = ENGINES[engine]
    unknown = list(_unknown(kind, table, path))
    if unknown:
        problems += unknown
        return None
    try:
        return msgspec.convert(table, kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        problems.append(_said(str(error), path))
        return None


def _decode(kind: type, value: Any) -> Any:
    if issubclass(kind, Size):
        return kind.read(value)
    raise NotImplementedError


def _unknown(kind: Any, table: Mapping[str, Any], path: str) -> Iterator[str]:
    """A line for each key that `kind` does not have, in nested tables too."""
    hints = typing.get_type_hints(kind)
    if dataclasses.is_dataclass(kind):
        names = [each.name for each in dataclasses.fields(kind)]
    else:
        names = [each.name for each in msgspec.structs.fields(kind)]
    for key, value in table.items():
        if key not in names:
            known = ("engine", *names) if path.startswith("runners.") else names
            yield f"{path}.{key}: there is no such key here{_nearest(key, known)}"
        elif isinstance(value, dict):
            for nested in _tables(hints[key]):
                yield from _unknown(nested, value, f"{path}.{key}")


def _tables(hint: Any) -> list[Any]:
    """The structs and dataclasses that a type allows."""
    kinds = typing.get_args(hint) or (hint,)
    return [
        kind
        for kind in kinds
        if isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or dataclasses.is_dataclass(kind))
    ]


def _nearest(name: str, known: Iterable[str]) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def _said(message: str, path: str) -> str:
    """A message of msgspec's in the words of the file, with the whole path."""
    text, _, inside = message.partition(" - at `$")
    place = path + inside.rstrip("`")
    missing = re.fullmatch(r"Object missing required field `(.+)`", text)
    if missing:
        return f"{place}: needs {missing[1]!r}"
    expected = re.fullmatch(r"Expected `(.+)`, got `(.+)`", text)
    if expected:
        wanted = " or ".join(_TYPES.get(each, each) for each in expected[1].split(" | ") if each != "null")
        return f"{place}: takes {wanted}, not {_TYPES.get(expected[2], expected[2])}"
    return f"{place}: {text.removeprefix('a size=')}"


# What tables say of each other


def _crossed(config: Config) -> Iterator[str]:
    for name, endpoint in config.endpoints.items():
        path = f"endpoints.{name}"
        yield from _named(f"{path}.runner", endpoint.runner, "runners", config.runners)
        yield from _named(f"{path}.service", endpoint.service, "services", config.services)
        for tier in endpoint.tiers:
            yield from _named(f"{path}.tiers", tier, "tiers", config.tiers)
        if endpoint.tiers and all(tier in config.tiers for tier in endpoint.tiers):
            yield from _tiers(path, {tier: config.tiers[tier] for tier in endpoint.tiers})
    if config.fleet is not None:
        for name in config.fleet.runners:
            yield from _named("fleet.runners", name, "runners", config.runners)
        for name in sorted(config.in_fleet & config.runners.keys()):
            yield from _in_fleet(name, config.runners[name], config.fleet)


def _named(path: str, name: str | None, section: str, there: Mapping[str, object]) -> Iterator[str]:
    if name is not None and name not in there:
        hint = _nearest(name, there) if there else ""
        yield f"{path}: there is no [{section}.{name}]{hint}"


def _tiers(path: str, tiers: Mapping[str, TierSection]) -> Iterator[str]:
    times = {tier.per for tier in tiers.values()}
    if len(times) > 1:
        yield f"{path}.tiers: {', '.join(tiers)} must have the same per, since one limiter holds them"
        return
    try:
        limiter(tiers={name: tier.limits for name, tier in tiers.items()}, per=times.pop())
    except ValueError as error:
        yield f"{path}.tiers: {error}"


def _in_fleet(name: str, runner: RunnerSection, fleet: FleetSection) -> Iterator[str]:
    if runner.memory is None:
        yield f"runners.{name}: needs 'memory' in a fleet: until it has been loaded once, nothing else tells its size"
    elif runner.queue == 0:
        yield f"runners.{name}.queue: 0 does not go with a fleet: a request waits there for the load"
    elif runner.size.floor * runner.memory > fleet.budget:
        need = format_size(runner.size.floor * runner.memory)
        yield f"runners.{name}: can never be loaded: it needs {need} of the fleet's {format_size(fleet.budget)}"


__all__ = ["EXAMPLE", "Config", "ConfigError", "load", "parse"]
