"""Gives a wrapper the very parameters of the function that it wraps, instead of ``*args, **kwargs``.

Packing arguments into a tuple and a dictionary, and spreading them again, costs more than two gates do. And a call with
wrong arguments should be refused by the call itself, before any gate has seen it.

A wrapper is compiled once for each `Shape`, with placeholders for names (`arg_0`, `arg_1`, ...). `fitted` then makes
one for a function by putting the function's names in their place. Parameters are known by their place in the frame, so
no name can collide with a name of the wrapper's own, and no text from outside is ever compiled.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple


class Shape(NamedTuple):
    """How many parameters there are: by position only, by position or name, by name only."""

    positional_only: int
    positional: int
    named: int

    @property
    def places(self) -> list[str]:
        """The placeholders, in order."""
        return [f"arg_{number}" for number in range(sum(self))]

    @property
    def parameters(self) -> str:
        """What stands in the parentheses of a `def`."""
        places = self.places
        by_place = self.positional_only + self.positional
        parts = places[: self.positional_only]
        if parts:
            parts.append("/")
        parts += places[self.positional_only : by_place]
        if self.named:
            parts += ["*", *places[by_place:]]
        return ", ".join(parts)

    @property
    def arguments(self) -> str:
        """What stands in the parentheses of a call that passes them on."""
        places = self.places
        by_place = self.positional_only + self.positional
        return ", ".join((*places[:by_place], *(f"{place}={place}" for place in places[by_place:])))


def shape_of(fn: Callable[..., Any]) -> Shape | None:
    """The shape of `fn`; None for what is no plain function, or takes any number of arguments."""
    if type(fn) is not FunctionType:
        return None
    code = fn.__code__
    if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return None
    only = code.co_posonlyargcount
    return Shape(only, code.co_argcount - only, code.co_kwonlyargcount)


def binder_of(fn: Callable[..., Any]) -> Callable[..., object] | None:
    """A function with `fn`'s parameters that does nothing: to call it raises the TypeError that wrong arguments of `fn`
    would. None for what is no plain function.
    """
    if type(fn) is not FunctionType:
        return None
    code = fn.__code__
    flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)
    count = code.co_argcount + code.co_kwonlyargcount + flags.bit_count()
    empty = _EMPTY.__code__.replace(
        co_argcount=code.co_argcount,
        co_posonlyargcount=code.co_posonlyargcount,
        co_kwonlyargcount=code.co_kwonlyargcount,
        co_flags=_EMPTY.__code__.co_flags | flags,
        co_varnames=code.co_varnames[:count],
        co_nlocals=count,
        co_name=code.co_name,
        co_qualname=code.co_qualname,
    )
    bound = FunctionType(empty, {}, argdefs=fn.__defaults__)
    bound.__kwdefaults__ = fn.__kwdefaults__
    return bound


def span_of(binder: Callable[..., object] | None) -> tuple[int, int]:
    """How few and how many arguments by position, without any by name, are right for what `binder_of` gave: then it
    need not be called. An empty span where there are none.
    """
    if not isinstance(binder, FunctionType):
        return 1, 0
    code = binder.__code__
    count = code.co_argcount
    by_name = code.co_varnames[count : count + code.co_kwonlyargcount]
    if any(name not in (binder.__kwdefaults__ or {}) for name in by_name):
        return 1, 0
    most = sys.maxsize if code.co_flags & inspect.CO_VARARGS else count
    return count - len(binder.__defaults__ or ()), most


def _EMPTY() -> None:  # noqa: N802 - its code is what is used
    pass


def fitted(code: CodeType, fn: Callable[..., Any], shape: Shape | None, names: dict[str, Any]) -> Callable[..., Any]:
    """A function of `code`, a wrapper compiled for `shape`, with the names and defaults of `fn`'s parameters.

    Args:
        code: the wrapper's.
        fn: what it wraps.
        shape: `fn`'s; None for a wrapper that takes any arguments.
        names: the wrapper's globals.
    """
    if shape is None:
        return FunctionType(code, names)
    assert isinstance(fn, FunctionType)  # noqa: S101 - only such a function has a shape
    count = sum(shape)
    real = dict(zip(shape.places, fn.__code__.co_varnames[:count], strict=True))
    guarded = FunctionType(
        code.replace(
            co_varnames=(*real.values(), *code.co_varnames[count:]),
            co_consts=tuple(_renamed(const, real) for const in code.co_consts),
        ),
        names,
        argdefs=fn.__defaults__,
    )
    guarded.__kwdefaults__ = fn.__kwdefaults__
    return guarded


def _renamed(const: Any, real: dict[str, str]) -> Any:
    # The names of arguments that are passed by name stand in a tuple among the constants.
    if isinstance(const, tuple) and const and all(isinstance(each, str) and each in real for each in const):
        names: Sequence[str] = const
        return tuple(real[each] for each in names)
    return const
