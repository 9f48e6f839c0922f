"""The embedding runner, end to end: the real model, in a real worker, with what people really pass to it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import threading

import numpy as np
import onnx
import pytest

from guardrails import deadline_in, timeout
from guardrails.errors import TimedOut
from runners import EmbeddingRunner, Faults
from runners.cli.models import find_minilm
from runners.cli.reference import PlainEmbedder
from runners.errors import (
    BudgetTooSmall,
    InvalidInput,
    InvalidModel,
    InvalidOption,
    ModelNotFound,
    RequestTimeout,
    RunnerClosed,
    TokenizerNotFound,
    UnsupportedModel,
    WorkerNotFound,
    WrongEventLoop,
)

TEXTS = ["hola", "mundo", "a circuit breaker stops calling what fails", "agua " * 200, "x"]


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def embedder(**options):
    models = find_minilm()
    return EmbeddingRunner(models.model, tokenizer=models.tokenizer, name="minilm", **options)


async def refused(error, message, path=None, **options):
    runner = embedder(**options) if path is None else EmbeddingRunner(path, **options)
    with pytest.raises(error, match=message) as caught:
        await runner.start()
    assert runner.state in ("new", "stopped")
    return caught.value


async def test_vectors_come_back_in_order_and_equal_a_plain_run():
    plain = PlainEmbedder(find_minilm())
    async with embedder() as runner:
        vectors = await runner.embed(TEXTS)
        assert runner.dim == 384
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert vectors.flags.writeable
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector @ plain.embed(text) >= 0.9999


async def test_a_long_list_is_cut_and_put_together_again():
    texts = [f"number {number}" for number in range(300)]
    async with embedder() as runner:
        whole = await runner.embed(texts)
        assert runner.stats().submitted == 5  # of at most 64 texts
        assert np.abs(whole[::50] - await runner.embed(texts[::50])).max() < 1e-5


BAD_TEXTS = [
    pytest.param("hola", "a list of texts, not one str", id="one text"),
    pytest.param(b"hola", "a list of texts, not one bytes", id="bytes"),
    pytest.param(7, "a list of texts, not int", id="no list"),
    pytest.param([], "an empty list", id="empty list"),
    pytest.param(["a", 7], r"texts\[1\] is a int", id="not a string"),
    pytest.param(["a", None], r"texts\[1\] is a NoneType", id="None"),
    pytest.param(["", "a"], r"texts\[0\] is empty", id="empty string"),
    pytest.param(["a" * 1_000_000], r"texts\[0\] has 1,000,000 characters; at most 100,000", id="a megabyte"),
    pytest.param(["a", "b\ud800"], r"texts\[1\] holds a lone surrogate at character 1", id="lone surrogate"),
]


async def test_bad_texts_are_refused_by_name_and_harm_nobody():
    async with embedder() as runner:
        good = asyncio.create_task(runner.embed(TEXTS))
        for case in BAD_TEXTS:
            texts, message = case.values
            with pytest.raises(InvalidInput, match=message) as caught:
                await runner.embed(texts)
            assert isinstance(caught.value, ValueError)
        assert (await good).shape == (len(TEXTS), 384)
        stats = runner.stats()
        assert (stats.submitted, stats.answered, stats.restarts) == (1, 1, {})


async def test_no_such_file(tmp_path):
    error = await refused(ModelNotFound, "there is no file or folder", tmp_path / "nothing.onnx")
    assert isinstance(error, FileNotFoundError)


async def test_a_folder_without_a_model(tmp_path):
    await refused(ModelNotFound, re.escape("model.onnx"), tmp_path)


async def test_not_an_onnx_file(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("this is a letter, not a model")
    (tmp_path / "tokenizer.json").symlink_to(find_minilm().tokenizer)
    error = await refused(InvalidModel, "model.onnx", path)
    assert isinstance(error, ValueError)


async def test_a_truncated_onnx_file(tmp_path):
    models = find_minilm()
    path = tmp_path / "model.onnx"
    path.write_bytes(models.model.read_bytes()[:1_000_000])
    (tmp_path / "tokenizer.json").symlink_to(models.tokenizer)
    await refused(InvalidModel, "model.onnx", path)


async def test_a_model_with_other_inputs(tmp_path):
    pixels = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, (1, 4))
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, (1, 4))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["pixels"], ["out"])], "image", [pixels], [out])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    (tmp_path / "tokenizer.json").symlink_to(find_minilm().tokenizer)
    await refused(UnsupportedModel, "pixels", path)


async def test_a_missing_tokenizer(tmp_path):
    path = tmp_path / "model.onnx"
    path.symlink_to(find_minilm().model)
    error = await refused(TokenizerNotFound, "tokenizer", path)
    assert isinstance(error, FileNotFoundError)


async def test_a_budget_below_the_loaded_model_names_the_one_that_would_do():
    error = await refused(BudgetTooSmall, "is too small: freshly loaded and warm the worker holds", memory="64MiB")
    assert f"memory={error.needed // 2**20}MiB or more" in str(error)
    for _ in range(4):  # side by side, and so under load: the sizes of loaded workers spread
        async with embedder(memory=error.needed, workers=3) as runner:
            assert (await runner.embed(["hola"])).shape == (1, 384)


async def test_an_option_that_does_not_exist():
    await refused(InvalidOption, "pooling", pooling="sum")


async def test_a_missing_worker_program():
    await refused(WorkerNotFound, "cannot be run", python="/nowhere/python")


async def test_before_start_and_after_close():
    runner = embedder()
    with pytest.raises(RunnerClosed, match="not started"):
        await runner.embed(["hola"])
    async with runner:
        pass
    with pytest.raises(RunnerClosed, match="closed"):
        await runner.embed(["hola"])


async def test_another_event_loop_is_refused():
    async with embedder() as runner:
        caught = []

        def elsewhere():
            try:
                asyncio.run(runner.embed(["hola"]))
            except WrongEventLoop as error:
                caught.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0.01)
        assert "start one runner in each loop" in str(caught[0])
        assert (await runner.embed(["hola"])).shape == (1, 384)


async def test_a_timeout_is_told_at_once_and_its_work_is_dropped():
    async with embedder() as runner:
        with pytest.raises(RequestTimeout):
            await runner.embed(["agua " * 120] * 640, timeout=0.05)
        assert (await runner.embed(["hola"], timeout=30)).shape == (1, 384)


async def test_a_deadline_around_the_call_counts():
    async with embedder(timeout=None) as runner:
        with deadline_in(0.05), pytest.raises(RequestTimeout):
            await runner.embed(["agua " * 120] * 640)
        with pytest.raises(TimedOut):
            await timeout(0.05)(runner.embed)(["agua " * 120] * 640)
        assert (await runner.embed(["hola"])).shape == (1, 384)


async def test_callers_that_leave_take_only_their_own_work_along():
    async with embedder() as runner:
        leaving = [asyncio.create_task(runner.embed([f"agua {number} " * 60])) for number in range(40)]
        staying = [asyncio.create_task(runner.embed([f"casa {number}"])) for number in range(40)]
        await asyncio.sleep(0)
        for task in leaving:
            task.cancel()
        assert all(vectors.shape == (1, 384) for vectors in await asyncio.gather(*staying))
        results = await asyncio.gather(*leaving, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_killed_twice_under_load_and_nothing_is_lost():
    plain = PlainEmbedder(find_minilm())
    async with embedder() as runner:
        tasks = [asyncio.create_task(runner.embed([f"text number {number}"])) for number in range(300)]
        for share in (100, 200):  # apart: what was running in both would be poison
            while runner.stats().answered < share or not any(worker.in_flight for worker in runner.stats().workers):
                await asyncio.sleep(0.005)
            os.kill(runner.stats().workers[0].pid, signal.SIGKILL)
        vectors = await asyncio.gather(*tasks)
        stats = runner.stats()
    assert stats.restarts == {"sigkill": 2}
    assert stats.answered == 300
    assert all(vectors[n][0] @ plain.embed(f"text number {n}") >= 0.9999 for n in range(0, 300, 25))


async def test_a_leak_past_the_budget_is_replaced_without_loss():
    async with embedder(memory="320MiB", faults=Faults(leak=2 * 1024 * 1024)) as runner:
        first = runner.stats().workers[0].pid
        answered = 0
        while "soft_budget" not in runner.stats().restarts:
            answered += len(await asyncio.gather(*(runner.embed(["hola"]) for _ in range(8))))
            assert answered < 2000
        stats = runner.stats()
        assert stats.answered == stats.submitted == answered
        assert first not in {worker.pid for worker in stats.workers}
