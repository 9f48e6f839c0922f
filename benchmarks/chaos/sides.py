"""The two sides of the chaos run, a function and the real embedding model, behind one face."""

from __future__ import annotations

import abc
import random
from typing import Any, ClassVar

from benchmarks.chaos.crowd import Ask, texts
from runners import EmbeddingRunner, FunctionRunner
from runners.cli.models import find_minilm
from runners.spec import Faults
from runners.supervision.restart import RestartPolicy

#: The text that makes a request commit the fault that the runner was made with.
TRIGGER = "as bad as it gets"


def policy() -> RestartPolicy:
    """Restarts are what is measured: no number of them is too many, and the second of two early ones comes soon."""
    return RestartPolicy(intensity=1000, backoff=0.01)


class Side(abc.ABC):
    """A kind of runner.

    Attributes:
        budgets: a soft and a hard budget that it can work in, ``memory`` and ``memory_hard``.
    """

    name: str
    budgets: ClassVar[dict[str, str]]

    @abc.abstractmethod
    def runner(self, *, faults: Faults | None = None, **options: Any) -> Any:
        """One that is not started. Restarts are not limited, nor is time."""

    @abc.abstractmethod
    def ask(self, runner: Any, chance: random.Random) -> Ask:
        """Calls of mixed sizes, whose answers are looked at."""

    @abc.abstractmethod
    async def trigger(self, runner: Any) -> None:
        """Make the call that commits the fault."""


class FunctionSide(Side):
    """A function that returns what it was given."""

    name = "function"
    budgets: ClassVar = {"memory": "400MiB", "memory_hard": "800MiB"}
    _sizes = (10, 200, 2_000, 50_000)

    def runner(self, *, faults: Faults | None = None, **options: Any) -> FunctionRunner:
        """It."""
        path = "benchmarks.chaos.work:echo"
        return FunctionRunner(path, idempotent=True, restart=policy(), timeout=None, faults=faults, **options)

    def ask(self, runner: FunctionRunner, chance: random.Random) -> Ask:
        """10 to 50,000 characters there and back."""

        async def ask(number: int) -> None:
            text = "x" * chance.choice(self._sizes)
            if await runner(number, text) != [number, text]:
                raise AssertionError("a wrong answer")

        return ask

    async def trigger(self, runner: FunctionRunner) -> None:
        """Call it with the trigger."""
        await runner(0, TRIGGER)


class EmbeddingSide(Side):
    """all-MiniLM-L6-v2 on onnxruntime."""

    name = "onnx"
    budgets: ClassVar = {"memory": "480MiB", "memory_hard": "800MiB"}

    def runner(self, *, faults: Faults | None = None, **options: Any) -> EmbeddingRunner:
        """It."""
        models = find_minilm()
        return EmbeddingRunner(
            models.model, tokenizer=models.tokenizer, restart=policy(), timeout=None, faults=faults, **options
        )

    def ask(self, runner: EmbeddingRunner, chance: random.Random) -> Ask:
        """1 to 4 texts of 1 to 60 words."""
        some = texts(chance, 200)

        async def ask(_: int) -> None:
            asked = chance.choices(some, k=chance.choice((1, 1, 2, 4)))
            if (await runner.embed(asked)).shape != (len(asked), runner.dim):
                raise AssertionError("a wrong answer")

        return ask

    async def trigger(self, runner: EmbeddingRunner) -> None:
        """Embed the trigger."""
        await runner.embed([TRIGGER])


SIDES: tuple[Side, ...] = (FunctionSide(), EmbeddingSide())
