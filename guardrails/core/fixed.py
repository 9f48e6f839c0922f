"""Arguments of a guard that hold for its whole life: an assignment to one raises, in place of having no effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn, Self, TypeVar

T = TypeVar("T")


class FixedArgument:
    """A class attribute that stands for a constructor argument which cannot be read or assigned to on the guard."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, guard: object | None, owner: type) -> Self:
        if guard is None:
            return self
        msg = f"{owner.__name__!r} object has no attribute {self._name!r}"
        raise AttributeError(msg, name=self._name, obj=guard)

    def __set__(self, guard: object, value: object) -> NoReturn:
        msg = f"{getattr(guard, 'name', type(guard).__name__)}: {self._name} cannot be changed: build another guard"
        raise AttributeError(msg, name=self._name, obj=guard)


def fixed(*names: str) -> Callable[[type[T]], type[T]]:
    """Make the arguments of these names fixed in a class of guards."""

    def mark(guard: type[T]) -> type[T]:
        for name in names:
            setattr(guard, name, FixedArgument(name))
        return guard

    return mark
