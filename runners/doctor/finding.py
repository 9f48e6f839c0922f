"""One line of the doctor's, and the setting that mends it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "failure"]
MendKind = Literal["config", "environment", "command"]

_MIB = 1 << 20
_FEW = 16
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Mend:
    """An exact setting.

    Attributes:
        kind: ``config``: lines of ``runners.toml``; ``environment``: ``NAME=value``; ``command``: for a shell.
        text: the setting. Words in capitals stand for what only you know.
        note: where or how, when that needs a word.
    """

    kind: MendKind
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line.

    Attributes:
        check: the name of the check.
        subject: what it is about: a table of the file, or a part of the machine.
        level: ``ok``, ``warning`` or ``failure``.
        why: what was seen, and what it means.
        mends: what turns it to ok, all of it together; empty where there is nothing to mend.
    """

    check: str
    subject: str
    level: Level
    why: str
    mends: tuple[Mend, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What it is about, whatever was found."""
        return self.check, self.subject


def config(tables: Mapping[str, Mapping[str, Any]], note: str = "") -> Mend:
    """Lines for ``runners.toml``: for each table, such as ``runners.minilm``, the keys to set."""
    lines = []
    for table, values in tables.items():
        lines.append(f"[{table}]")
        lines += [f"{name} = {toml(value)}" for name, value in values.items()]
    return Mend("config", "\n".join(lines), note)


def environment(name: str, value: object) -> Mend:
    """A variable."""
    return Mend("environment", f"{name}={value}")


def command(text: str, note: str = "") -> Mend:
    """A line for a shell."""
    return Mend("command", text, note)


def table(section: str, name: str) -> str:
    """The header of a named table: ``runners.minilm``, quoted where it must be."""
    return f"{section}.{_key(name)}"


def toml(value: Any) -> str:
    """A value as the file has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(name)} = {toml(each)}" for name, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return f"{value:_}" if isinstance(value, int) and value >= 100_000 else str(value)


def size_text(size: float) -> str:
    """Bytes as the file has them, ``"512MiB"``: rounded down to whole MiB where that makes little difference."""
    whole = int(size) // _MIB
    if size % _MIB and whole < _FEW:
        return f"{int(size)}B"
    return f"{whole // 1024}GiB" if whole and whole % 1024 == 0 else f"{whole}MiB"


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)
