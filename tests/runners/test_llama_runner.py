"""The llama runner, end to end: a tiny model with random weights in real workers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import time

import msgspec
import numpy as np
import psutil
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("jinja2")

from runners import Faults, LlamaRunner
from runners.errors import (
    BudgetTooSmall,
    InvalidInput,
    InvalidModel,
    InvalidOption,
    ModelChanged,
    ModelNotFound,
    PoisonedRequest,
    PromptTooLong,
    RequestTimeout,
    RunnerCrashed,
    StartFailed,
    UnsupportedModel,
)
from runners.protocol.generation import Complete, Sampling
from runners.supervision.process import _Lines
from tests.support import until

from .engines import tiny_gguf
from .engines.tiny_gguf import EOS, IM_END

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
NO_END = {EOS: -100.0, IM_END: -100.0}
#: The text of a seed does not depend on who else is in the batch.
EXACT = {"kv_type": "f32", "flash_attention": False}
USER = [{"role": "user", "content": "the cab"}]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_gguf.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in before]
    for child in left:
        child.kill()
    assert not left


def llama(path, **options):
    return LlamaRunner(path, **{"name": "tiny", "threads": 1, "timeout": 30, **options})


def worker(runner):
    (only,) = runner._supervisor.workers
    return only


async def read(pieces):
    return [piece async for piece in pieces]


# Everything it does


async def test_all_calls(tiny):
    async with llama(tiny, **EXACT) as runner:
        assert runner.info["architecture"] == "llama"
        assert runner.info["kv_bytes"] == runner.info["kv_bytes_reported"]
        options = {"seed": 4, "max_tokens": 30, "logit_bias": NO_END}
        done = await runner.complete("abc", **options)
        assert (done.completion_tokens, done.finish_reason, str(done)) == (30, "length", done.text)
        stream = runner.stream_complete("abc", **options)
        assert "".join(await read(stream)) == done.text == stream.text == stream.completion.text
        assert stream.completion.cached_tokens == 0  # too short to be worth it
        chat = await runner.chat(USER, **options)
        async with runner.stream_chat(USER, **options) as stream:
            assert "".join(await read(stream)) == chat.text
        assert chat.prompt_tokens == await runner.count(USER)
        other = await runner.chat(
            USER, template="{{ messages[0].content }}{{ more }}", template_options={"more": "!"}, **options
        )
        assert other.prompt_tokens == 1 + await runner.count("the cab!")
        ids = await runner.tokenize("abc")
        assert (await runner.complete([1, *ids], **options)).text == done.text
        assert await runner.count("abc") == len(ids)
        assert await runner.tokenize("</s>", special=True) == [EOS]
        vectors = await runner.embed(["abc", "the"])
        assert (vectors.shape, vectors.dtype) == ((2, tiny_gguf.EMBD), np.float32)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
        assert (await runner.embed([])).shape == (0, tiny_gguf.EMBD)
        assert len((await runner.complete("abc", n=3, **options)).choices) == 3
        texts = await asyncio.gather(*(runner.complete(f"{n} the", **options) for n in range(64)))
        assert all(text.completion_tokens == 30 for text in texts)
        assert runner.stats().failed == 0


async def test_misuse_is_refused_by_name(tiny):
    async with llama(tiny, context=512) as runner:
        for options, name in (
            ({"temperature": -1}, "temperature"),
            ({"top_p": 1.5}, "top_p"),
            ({"top_k": -1}, "top_k"),
            ({"min_p": "x"}, "min_p"),
            ({"repeat_penalty": 0}, "repeat_penalty"),
            ({"presence_penalty": float("nan")}, "presence_penalty"),
            ({"frequency_penalty": 1e9}, "frequency_penalty"),
            ({"penalty_last_n": -2}, "penalty_last_n"),
            ({"seed": -1}, "seed"),
            ({"stop": ["a", ""]}, "stop"),
            ({"stop": 5}, "stop"),
            ({"stop": None}, "stop"),
            ({"logit_bias": {"a": 1}}, "logit_bias"),
            ({"logit_bias": 3}, "logit_bias"),
            ({"logit_bias": None}, "logit_bias"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"logprobs": 21}, "logprobs"),
            ({"n": 0}, "n"),
            ({"grammar": ""}, "grammar"),
            ({"json_schema": {"a": {1}}}, "json_schema"),
            ({"beams": 3}, "beams"),
        ):
            for call in (runner.complete, runner.stream_complete):
                with pytest.raises((ValueError, TypeError), match=name):
                    await read(call("abc", **options)) if call == runner.stream_complete else await call(
                        "abc", **options
                    )
        with pytest.raises(ValueError, match="n takes 1"):
            runner.stream_complete("abc", n=2)
        for prompt in ([2**70], [-(2**70)], [-1], [10**6]):
            with pytest.raises(InvalidInput, match="token"):
                await runner.complete(prompt)
        for prompt in ([1.5], [True], ["a"]):
            with pytest.raises(TypeError, match="prompt"):
                await runner.complete(prompt)
        with pytest.raises(InvalidInput, match="surrogate"):
            await runner.complete("\ud800")
        for messages in ([], [{}], [{"role": "user", "content": 5}]):
            with pytest.raises(ValueError, match="messages"):
                await runner.chat(messages)
        with pytest.raises(TypeError, match="messages"):
            await runner.chat("hello")
        with pytest.raises(PromptTooLong) as long:
            await runner.complete("z" * 600, max_tokens=10)
        assert (long.value.prompt, long.value.wanted, long.value.context) == (601, 611, 512)
        assert "zzz" not in str(long.value)
        with pytest.raises(InvalidInput, match="at most 134,217,728 can be sent"):
            await runner.complete("z" * 134_217_729, max_tokens=10)
        assert runner.stats().workers[0].in_flight == 0
        assert (await runner.complete("abc", max_tokens=3)).prompt_tokens


async def test_a_reader_that_leaves_frees_its_sequence(tiny):
    async with llama(tiny, slots=1) as runner:
        for _ in range(3):
            async with runner.stream_complete("abc", max_tokens=4000, logit_bias=NO_END) as stream:
                assert await anext(stream)
            assert (await runner.complete("abc", max_tokens=3, timeout=5)).prompt_tokens
        task = asyncio.create_task(runner.complete("abc", max_tokens=4000, logit_bias=NO_END))
        await until(lambda: worker(runner).in_flight)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(RequestTimeout):
            await runner.complete("abc", max_tokens=4000, logit_bias=NO_END, timeout=0.02)
        assert (await runner.complete("abc", max_tokens=3, timeout=5)).prompt_tokens
        await until(lambda: not worker(runner).in_flight)
        assert runner.stats().restarts == {}


async def test_a_slow_reader_holds_up_nobody(tiny):
    async with llama(tiny, **EXACT) as runner:
        wanted = await runner.complete("slow", max_tokens=500, seed=1, logit_bias=NO_END)
        slow = runner.stream_complete("slow", max_tokens=500, seed=1, logit_bias=NO_END)
        first = await anext(slow)
        (request,) = worker(runner).in_flight.values()
        await until(lambda: request.paused)
        texts = await asyncio.gather(*(runner.complete(f"{n}", max_tokens=20, logit_bias=NO_END) for n in range(30)))
        assert all(text.completion_tokens == 20 for text in texts)
        assert not request.future.done()
        assert first + "".join(await read(slow)) == wanted.text


# Workers that die


async def test_a_killed_worker_loses_only_what_was_read(tiny):
    options = {"max_tokens": 400, "logit_bias": NO_END}
    async with llama(tiny, context=8192, **EXACT) as runner:
        read_from = [runner.stream_complete(f"read {n}", seed=n, **options) for n in range(3)]
        for stream in read_from:
            await anext(stream)
            await anext(stream)
        calls = [asyncio.create_task(runner.complete(f"call {n}", seed=n, **options)) for n in range(4)]
        body = msgspec.msgpack.encode(Complete("unread", Sampling(seed=9, **options)))
        with runner._ask_stream(body, b"", window=8, timeout=None, redeliver=True) as unread:
            (request,) = [r for r in worker(runner).in_flight.values() if getattr(r, "window", 0) == 8]
            await until(lambda: request.buffer)  # sent, and read by nobody
            await until(lambda: len(worker(runner).in_flight) == 8)
            os.kill(worker(runner).pid, signal.SIGKILL)
            for stream in read_from:
                with pytest.raises(RunnerCrashed) as crash:
                    await read(stream)
                assert not isinstance(crash.value, PoisonedRequest)
                assert crash.value.partial == stream.text != ""
                assert stream.completion is None
            pieces = [msgspec.msgpack.decode(item)[0] async for item, _ in unread]
        answers = await asyncio.gather(*calls)
        again = await asyncio.gather(*(runner.complete(f"call {n}", seed=n, **options) for n in range(4)))
        assert [answer.text for answer in answers] == [answer.text for answer in again]
        assert "".join(pieces) == (await runner.complete("unread", seed=9, **options)).text
        stats = runner.stats()
        assert stats.answered == 4 + 1 + 4 + 1
        assert sum(stats.restarts.values()) == 1


async def test_only_the_request_that_kills_workers_is_refused(tiny):
    async with llama(tiny, faults=Faults(trigger="poison", effect="crash")) as runner:
        calls = [asyncio.create_task(runner.complete(f"{n}", max_tokens=200, logit_bias=NO_END)) for n in range(8)]
        bad = asyncio.create_task(read(runner.stream_chat([{"role": "user", "content": "poison"}])))
        calls += [asyncio.create_task(runner.complete(f"{n}", max_tokens=200, logit_bias=NO_END)) for n in range(8)]
        with pytest.raises(PoisonedRequest) as refused:
            await bad
        assert refused.value.partial == ""
        assert all(answer.completion_tokens == 200 for answer in await asyncio.gather(*calls))
        assert sum(runner.stats().restarts.values()) == 2


# Workers that do not start


async def refused(error, path, *, within=15.0, **options):
    runner = llama(path, **options)
    began = time.monotonic()
    with pytest.raises(error) as caught:
        await runner.start()
    assert time.monotonic() - began < within
    assert runner.state in ("new", "stopped")
    assert "tiny: " in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["empty", "magic", "counts", "infos", "cut_in_tensors"])
async def test_a_damaged_file(tiny, tmp_path, name):
    path = tiny_gguf.damaged(tiny, tmp_path, name)
    assert str(path) in str(await refused(InvalidModel, path))


async def test_a_file_that_aborts_the_process_that_loads_it(tiny, tmp_path):
    path = tmp_path / "twice.gguf"
    path.write_bytes(tiny.read_bytes().replace(b"<0x41>", b"<0x42>"))  # the library asserts that tokens differ
    failure = await refused(StartFailed, path)
    assert "SIGABRT" in str(failure)
    assert "ASSERT" in str(failure)


async def test_what_is_no_model_and_what_does_not_fit(tiny, tmp_path):
    await refused(ModelNotFound, tmp_path / "missing.gguf")
    await refused(ModelNotFound, tmp_path)
    await refused(UnsupportedModel, tiny_gguf.write(tmp_path / "x.gguf", architecture="nosuch"))
    await refused(UnsupportedModel, tiny_gguf.write_encoder(tmp_path / "bert.gguf"))
    await refused(InvalidModel, tiny_gguf.write(tmp_path / "nan.gguf", nan=True))
    assert "kv_type" in str(await refused(InvalidOption, tiny, kv_type="q8_0", flash_attention=False))
    assert "slots" in str(await refused(InvalidOption, tiny, slots=1000))


async def test_the_budget_or_the_context_that_a_refusal_names_will_do(tiny):
    few = await refused(BudgetTooSmall, tiny, memory="160MiB", context=2**20)
    assert "q8_0" in str(few)
    context = int(re.search(r"context=(\d+) or less", str(few))[1])
    async with llama(tiny, memory="160MiB", context=context):
        pass
    for _ in range(3):
        async with llama(tiny, memory=few.needed, context=2**20) as runner:
            assert runner.stats().workers[0].baseline > 512 * 2**20


# What the library says


async def test_the_librarys_log_goes_to_the_runners_log_and_not_to_the_terminal(tiny, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG, "runners.worker")
    async with llama(tiny) as runner:
        await runner.complete("abc", max_tokens=3)
    lines = [r for r in caplog.records if r.name == "runners.worker.tiny"]
    assert any("KV buffer size" in r.getMessage() and r.levelno == logging.DEBUG for r in lines)
    assert not any(r.getMessage().startswith("<") for r in lines)
    assert max(r.levelno for r in lines) <= logging.WARNING
    caplog.clear()
    with contextlib.suppress(InvalidModel):
        await llama(tiny_gguf.damaged(tiny, tmp_path, "cut_in_tensors"), name="bad").start()
    errors = [r for r in caplog.records if r.name == "runners.worker.bad" and r.levelno == logging.ERROR]
    assert any("not within the file bounds" in r.getMessage() for r in errors)
    assert capfd.readouterr() == ("", "")


def test_a_line_says_how_bad_it_is():
    got = []

    class Log:
        def log_line(self, level, line):
            got.append((level, line))

    lines = _Lines(Log(), logging.WARNING)
    lines.data_received(b"<3>error\n<4>warning\n<7>deb")
    lines.data_received(b"ug\nplain\n<6>\n<3 z\n")
    assert got == [
        (logging.ERROR, "error"),
        (logging.WARNING, "warning"),
        (logging.DEBUG, "debug"),
        (logging.WARNING, "plain"),
        (logging.INFO, ""),
        (logging.WARNING, "<3 z"),
    ]


async def test_a_file_that_was_replaced_is_refused_until_recycle(tmp_path):
    model = tiny_gguf.write(tmp_path / "model.gguf")
    async with LlamaRunner(model, slots=2, context=256) as llama:
        data = bytearray(model.read_bytes())
        data[-64:] = bytes(64)
        (tmp_path / "new").write_bytes(data)
        (tmp_path / "new").rename(model)
        with pytest.raises(ModelChanged, match=r"model\.gguf"):
            await llama._supervisor.bring_up()
        assert llama.stats().model_changed == str(model)
        assert (await llama.complete("the", max_tokens=2)).text is not None
        await llama.recycle()
        assert llama.stats().model_changed is None
