"""What a method is called on, as a part of the key of its calls. Pure.

`key=lambda self, text: text` names the arguments that matter and leaves the instance out. Two instances, of two tenants
say, would then share their answers, so the cache adds the instance to the key of every method.
"""

from __future__ import annotations

import inspect
import types
import weakref
from collections.abc import Callable, Mapping
from typing import Any


class Receiver:
    """Stands for one object in a key, whatever its class makes of `==` and `hash`.

    It holds the object weakly, so that entries do not keep instances alive. Once the object is gone, this equals
    nothing but itself: another object that gets the same `id` has another key. An object without `__weakref__` is held.
    """

    __slots__ = ("_hash", "of")

    def __init__(self, thing: object) -> None:
        self._hash = id(thing)
        self.of: Callable[[], object]
        try:
            self.of = weakref.ref(thing)
        except TypeError:
            self.of = lambda: thing

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is not Receiver:
            return NotImplemented
        thing = self.of()
        return thing is not None and thing is other.of()


def receiver_of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Receiver | None:
    """What `function` is called on, if it is a method: the instance, or the class of a class method.

    A method is a function whose first parameter is called `self` or `cls`, or that is found in the class of its first
    argument.
    """
    first_name = _first_parameter(function)
    if first_name in _RECEIVERS:
        thing = args[0] if args else kwargs.get(first_name)
        return None if thing is None else Receiver(thing)
    if not args:
        return None
    thing = args[0]
    if type(thing) not in _DATA and _found_in(type(thing), thing, function):
        return Receiver(thing)
    return None


_RECEIVERS = frozenset({"self", "cls"})
_DATA = frozenset({str, bytes, int, float, bool, list, tuple, dict, set, frozenset, type(None)})


def _first_parameter(function: Any) -> str | None:
    while type(function) is types.FunctionType:
        code = function.__code__
        if code.co_argcount:
            return code.co_varnames[0]
        if not code.co_flags & inspect.CO_VARARGS:
            return None
        function = function.__dict__.get("__wrapped__")  # a decorator that takes what there may be
    return None


#: Whether a function is a method of a class, for functions and classes that have been asked about.
_known: weakref.WeakKeyDictionary[type, weakref.WeakKeyDictionary[Any, bool]] = weakref.WeakKeyDictionary()


def _found_in(kind: type, thing: object, function: Any) -> bool:
    asked = thing if isinstance(thing, type) else kind
    try:
        return _known[asked][function]
    except KeyError:
        found = _look(asked, kind, function)
        _known.setdefault(asked, weakref.WeakKeyDictionary())[function] = found
    except TypeError:  # one that cannot be held weakly, or hashed
        found = _look(asked, kind, function)
    return found


def _look(asked: type, kind: type, function: Any) -> bool:
    classes = asked.__mro__ if asked is kind else (*asked.__mro__, *kind.__mro__)
    return any(_leads_to(value, function) for cls in classes for value in tuple(vars(cls).values()))


def _leads_to(value: object, function: Any) -> bool:
    each = value.__func__ if isinstance(value, classmethod) else value
    while type(each) is types.FunctionType:
        if each is function:
            return True
        if getattr(each.__dict__.get("__guarded__"), "fn", None) is function:
            return True
        each = each.__dict__.get("__wrapped__")
    return each is function


__all__ = ["Receiver", "receiver_of"]
