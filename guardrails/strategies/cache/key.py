"""How a cache tells calls apart. Pure.

Few short arguments are a key as they are. All others are encoded, each with its type, and a digest of that stands for
them: BLAKE2b (RFC 7693), 16 bytes. So 1, 1.0 and True are three keys, as are a list and a tuple, or two dataclasses
with the same fields; the order of keyword arguments, of a dict and of a set plays no part.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import functools
import inspect
import pathlib
import sys
import types
from collections.abc import Callable, Hashable, Mapping
from hashlib import blake2b
from operator import itemgetter
from typing import Any

from guardrails.strategies.cache.receiver import Receiver

#: Texts and bytes longer than this are not kept as a part of the key: their digest is.
LONG = 1024

Put = Callable[[str], object]


class NoKey(TypeError):
    """Something cannot be encoded. The text names its type and nothing else."""


def local_key(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Hashable, ...]:
    """The key of a call within the process: `function` first. It holds the function, so that no other one can ever
    have the same key.

    Raises:
        NoKey: the arguments cannot be encoded.
    """
    names: tuple[str, ...] = ()
    values = args
    if kwargs:
        names = tuple(kwargs) if len(kwargs) == 1 else tuple(sorted(kwargs))
        values = (*args, *map(kwargs.__getitem__, names))
    typed = False
    for value in values:
        kind = type(value)
        if kind is str:
            if len(value) > LONG:
                break
        elif kind is bool:
            typed = True  # True == 1
        elif kind is bytes:
            if len(value) > LONG:
                break
            typed = True  # comparing bytes with a text is a warning, under python -b
        elif kind is float:
            if value == 0 or value != value:  # noqa: PLR0124 - 0.0 == -0.0, and NaN equals nothing
                break
            typed = True
        elif kind is not int and value is not None:
            break
    else:
        if typed:
            return function, tuple(map(type, values)), values, names
        return (function, values, names) if names else (function, values)
    return function, digest(values, names)


def chosen_key(function: Callable[..., Any], chosen: Any, receiver: Receiver | None = None) -> tuple[Hashable, ...]:
    """The key of a call for which a `key` function returned `chosen`, of a method that is called on `receiver`.

    Raises:
        NoKey: `chosen` cannot be encoded.
    """
    several = type(chosen) is tuple
    key = (*local_key(function, chosen, {}), tuple) if several else local_key(function, (chosen,), {})
    return key if receiver is None else (*key, receiver)


def key_size(key: tuple[Hashable, ...]) -> int:
    """About the bytes that a key holds, without the function."""
    size = sys.getsizeof(key)
    for part in key[1:]:
        if type(part) is tuple:
            size += sys.getsizeof(part)
            if not (part and isinstance(part[0], type)):  # classes are nobody's
                size += sum(map(sys.getsizeof, part))
        elif not isinstance(part, type):
            size += sys.getsizeof(part)
    return size


def store_key(key: tuple[Hashable, ...]) -> bytes:
    """16 bytes for the key of a call, the same in every process. They tell nothing about what they stand for.

    Raises:
        TypeError: as `stable_name`; or the key has an instance in it, which other processes do not know.
    """
    function, *rest = key
    name = stable_name(function)
    if type(rest[-1]) is Receiver:
        thing = rest[-1].of()
        if not isinstance(thing, type):
            msg = (
                f"a store cannot tell the instances of {type(thing).__name__} apart in every process, and {name[1]} is "
                "called on one: pass per_instance=False, and have key= return what tells them apart"
            )
            raise TypeError(msg)
        rest[-1] = ("class", thing)
    return digest(name, rest)


def stable_name(function: Any) -> tuple[str, str]:
    """A function's module and qualified name.

    Raises:
        TypeError: they do not tell it apart from others: it was made within a function, is a bound method or a partial.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    bound = getattr(function, "__self__", None)
    if (
        not isinstance(module, str)
        or not isinstance(name, str)
        or "<" in name
        or not (bound is None or isinstance(bound, type | types.ModuleType))
    ):
        what = name if isinstance(name, str) else f"a {type(function).__name__}"
        msg = (
            f"a store needs a function that its module and name tell apart in every process, and {what} is not one: "
            "guard a function that stands in a module or a class"
        )
        raise TypeError(msg)
    return module, name


def digest(*parts: Any) -> bytes:
    """16 bytes that stand for `parts`, the same in every process.

    Raises:
        NoKey: a part cannot be encoded.
    """
    found: list[str] = []
    try:
        _write(parts, found.append)
    except RecursionError:
        msg = "something that contains itself"
        raise NoKey(msg) from None
    return blake2b("".join(found).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _write(value: Any, put: Put) -> None:
    # Each piece says its type and its length, or ends in a mark that cannot stand in it: no two values look the same.
    kind = type(value)
    if kind is str:
        put(f"s{len(value)}:{value}")
    elif kind is dict:
        _dict(value, put)
    elif kind is list or kind is tuple:
        put(f"{'l' if kind is list else 't'}{len(value)}:")
        for item in value:
            _write(item, put)
    elif kind is bool or value is None:
        put("T" if value is True else "F" if value is False else "N")
    elif kind is int:
        put(f"i{value:x};")  # in hexadecimal, which has no limit of digits
    elif kind is float:
        put(f"f{value.hex()};")
    elif kind is bytes or kind is bytearray:
        put(f"{'b' if kind is bytes else 'B'}{len(value)}:{value.decode('latin-1')}")
    else:
        _object(value, kind, put)


def _dict(value: Mapping[Any, Any], put: Put) -> None:
    put(f"d{len(value)}:")
    if set(map(type, value)) == _TEXT:
        for name in sorted(value):
            put(f"{len(name)}:{name}")
            _write(value[name], put)
        return
    for encoded, item in sorted(((_encoded(key), item) for key, item in value.items()), key=itemgetter(0)):
        put(encoded)
        _write(item, put)


def _encoded(value: Any) -> str:
    found: list[str] = []
    _write(value, found.append)
    return "".join(found)


def _object(value: Any, kind: type, put: Put) -> None:
    fields = _fields(value, kind)
    if fields is not None:
        name = f"{kind.__module__}.{kind.__qualname__}"
        put(f"o{len(name)}:{name}")
        _write(fields, put)
        more = _more(value, kind)
        if more:
            put("+")
            _write(more, put)
    elif kind is set or kind is frozenset:
        put(f"{'S' if kind is set else 'Z'}{len(value)}:")
        for encoded in sorted(map(_encoded, value)):
            put(encoded)
    else:
        msg = f"a {kind.__qualname__}"
        raise NoKey(msg)


def _fields(value: Any, kind: type) -> Any:
    """What tells a value of a known class apart from others of its class, or None."""
    if isinstance(value, enum.Flag):
        return value.value
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(kind):
        return {name: getattr(value, name) for name in _names_of(kind)}
    if isinstance(value, _loaded("msgspec", "Struct")):
        return {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):  # a named tuple
        return list(value)
    if kind is complex or isinstance(value, pathlib.PurePath) or kind in _by_text():
        return str(value)
    if kind in _BY_REPR and type(getattr(value, "tzinfo", None)) in _known_zones():
        return repr(value)
    if isinstance(value, type) and "<" not in value.__qualname__:
        return f"{value.__module__}.{value.__qualname__}"
    return None


def _more(value: Any, kind: type) -> dict[str, Any]:
    """What an object holds beside the fields of its class: a subclass or an `__init__` has set it, and it tells the
    object apart like any field. Not what is computed from the fields (`functools.cached_property`).
    """
    if isinstance(value, type | enum.Enum):
        return _NO_NAMES
    known = _names_of(kind) if dataclasses.is_dataclass(kind) else ()
    held: dict[str, Any] = getattr(value, "__dict__", _NO_NAMES)
    more: dict[str, Any] = {}
    if len(held) != len(known) or not all(name in held for name in known):
        more = {name: held[name] for name in held if name not in known and not _is_computed(kind, name)}
    for name in _slots_of(kind):
        if name not in known and hasattr(value, name):
            more[name] = getattr(value, name)
    return more


def _is_computed(kind: type, name: str) -> bool:
    return isinstance(inspect.getattr_static(kind, name, None), functools.cached_property)


# Who has a value of these classes has loaded their modules: together they take longer to load than all of a cache.


def _loaded(module: str, name: str) -> Any:
    return getattr(sys.modules.get(module), name, ())


def _by_text() -> tuple[Any, ...]:
    return _loaded("uuid", "UUID"), _loaded("decimal", "Decimal")


def _known_zones() -> tuple[Any, ...]:
    return type(None), dt.timezone, _loaded("zoneinfo", "ZoneInfo")


@functools.cache
def _names_of(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


@functools.cache
def _slots_of(kind: type) -> tuple[str, ...]:
    """The slots that Python classes add. Those of a C class (msgspec's, pathlib's) are no business of ours."""
    if not dataclasses.is_dataclass(kind):
        return ()
    found: list[str] = []
    for cls in kind.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        found.extend((slots,) if isinstance(slots, str) else slots)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


_NO_NAMES: dict[str, Any] = {}
_TEXT = frozenset({str})
_BY_REPR = frozenset({dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone})

__all__ = ["NoKey", "chosen_key", "digest", "key_size", "local_key", "stable_name", "store_key"]
