"""Faults on purpose: each does what it says, whatever the engine."""

from __future__ import annotations

import pytest

from runners import EmbeddingRunner, FunctionRunner
from runners.errors import PoisonedRequest
from runners.spec import Faults

pytestmark = pytest.mark.anyio


def test_an_unknown_effect_is_refused():
    with pytest.raises(ValueError, match="effect takes one of 'jump', 'hang', 'deadlock', 'crash', not 'sulk'"):
        Faults(trigger="x", effect="sulk")


_HARD = {"memory": "100MiB", "memory_hard": "200MiB"}


@pytest.mark.parametrize(
    ("effect", "words", "options"),
    [
        ("crash", "SIGSEGV", {}),
        ("hang", "stuck", {"heartbeat": 1.0}),
        ("deadlock", "stuck", {"heartbeat": 1.0}),
        ("jump", "hard_budget", _HARD),  # no heartbeat: a jump on a slow machine is also a long step
    ],
    ids=["crash", "hang", "deadlock", "jump"],
)
async def test_a_request_that_holds_the_trigger(effect, words, options):
    faults = Faults(trigger="boom", effect=effect)
    async with FunctionRunner("calls:echo", idempotent=True, faults=faults, **options) as echo:
        assert await echo("bo om") == "bo om"
        with pytest.raises(PoisonedRequest, match=words):
            await echo("this goes boom")
        assert await echo("bo om") == "bo om"
        stats = echo.stats()
        assert (stats.answered, stats.failed, stats.redelivered) == (2, 1, 1)


async def test_a_jump_that_no_budget_ends_is_answered(monkeypatch):
    async with FunctionRunner("calls:echo", faults=Faults(trigger="boom", effect="jump"), memory="8GiB") as echo:
        assert await echo("boom") == "boom"


async def test_the_embedding_engine_too(minilm):
    model, tokenizer = minilm
    faults = Faults(trigger="boom", effect="crash")
    async with EmbeddingRunner(model, tokenizer=tokenizer, faults=faults) as embedder:
        with pytest.raises(PoisonedRequest, match="SIGSEGV"):
            await embedder.embed(["hola", "boom"])
        assert (await embedder.embed(["hola"])).shape == (1, embedder.dim)
