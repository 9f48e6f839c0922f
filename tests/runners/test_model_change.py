"""A model's file is replaced while its runner serves: no answers of two models, and `recycle()` takes the new one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal

import numpy as np
import pytest
from onnx import numpy_helper

from guardrails import subscribe
from runners import EmbeddingRunner
from runners.errors import ModelChanged
from runners.events import ModelFileChanged
from runners.supervision.restart import RestartPolicy
from runners.supervision.served_model import ServedModel
from tests.support import until

from .engines.conftest import TABLE, gather, write_model, write_tokenizer

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def write(folder, factor):
    """A model whose vectors are those of the tiny one, each component with its own factor."""
    folder.mkdir(exist_ok=True)
    table = TABLE.copy()
    table[:, 0] *= factor
    write_model(folder / "new", **gather(constants=[numpy_helper.from_array(table, "table")]))
    (folder / "new").rename(folder / "model.onnx")
    if not (folder / "tokenizer.json").exists():
        write_tokenizer(folder / "tokenizer.json")
    return folder


def runner(folder, **options):
    return EmbeddingRunner(
        folder,
        threads=1,
        normalize=False,
        restart=RestartPolicy(intensity=3, backoff=0.01, probe_interval=0.2),
        **options,
    )


def kill(embedder, number=0):
    os.kill(embedder.stats().workers[number].pid, signal.SIGKILL)


async def settled(embedder, workers):
    await until(lambda: [worker.state for worker in embedder.stats().workers] == ["ready"] * workers)


async def test_a_restarted_worker_with_another_file_is_refused_until_recycle(tmp_path):
    write(tmp_path, 1.0)
    seen = []
    unsubscribe = subscribe(seen.append)
    try:
        async with runner(tmp_path, workers=2) as embedder:
            old = await embedder.embed(["a"])
            write(tmp_path, 5.0)
            kill(embedder)
            await until(lambda: embedder.stats().model_changed is not None)
            assert embedder.stats().model_changed == str(tmp_path / "model.onnx")
            for _ in range(20):  # the other one serves on
                assert np.array_equal(await embedder.embed(["a"]), old)
            await embedder.recycle()
            await settled(embedder, 2)
            assert embedder.stats().model_changed is None
            new = await embedder.embed(["a"])
            assert not np.array_equal(new, old)
            for _ in range(20):
                assert np.array_equal(await embedder.embed(["a"]), new)
            kill(embedder)
            await settled(embedder, 2)
            assert np.array_equal(await embedder.embed(["a"]), new)
    finally:
        unsubscribe()
    changed = [event for event in seen if isinstance(event, ModelFileChanged)]
    assert [event.path for event in changed] == [str(tmp_path / "model.onnx")]


async def test_the_error_names_the_file_and_what_to_do(tmp_path):
    write(tmp_path, 1.0)
    async with runner(tmp_path) as embedder:
        write(tmp_path, 5.0)
        with pytest.raises(ModelChanged, match=r"model\.onnx.*recycle\(\)") as caught:
            await embedder._supervisor.bring_up()
        assert caught.value.path == str(tmp_path / "model.onnx")
        assert (await embedder.embed(["a"])).shape == (1, 4)


@pytest.mark.parametrize("change", ["copy", "in_place", "link", "tokenizer", "settings"])
async def test_what_counts_as_another_file(tmp_path, change):
    folder = write(tmp_path / "one", 1.0)
    model = folder / "model.onnx"
    if change == "link":
        model.rename(tmp_path / "first.onnx")
        model.symlink_to(tmp_path / "first.onnx")
    async with runner(folder) as embedder:
        if change == "copy":
            shutil.copy(model, tmp_path / "copy")  # the same content under another inode
            (tmp_path / "copy").rename(model)
        elif change == "in_place":
            was = model.stat()
            data = bytearray(model.read_bytes())
            at = data.index(TABLE.tobytes())
            data[at : at + TABLE.nbytes] = (TABLE * 2).tobytes()
            with model.open("r+b") as file:
                file.write(data)
            os.utime(model, ns=(was.st_atime_ns, was.st_mtime_ns))
        elif change == "link":
            other = write(tmp_path / "two", 2.0) / "model.onnx"
            model.unlink()
            model.symlink_to(other)
        elif change == "tokenizer":
            write_tokenizer(folder / "tokenizer.json", {"[UNK]": 1, "[PAD]": 0, "[CLS]": 2, "[SEP]": 3, "b": 4, "a": 5})
        else:
            (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
        if change == "copy":
            worker = await embedder._supervisor.bring_up()
            await worker.end("test")
        else:
            with pytest.raises(ModelChanged):
                await embedder._supervisor.bring_up()


async def test_a_runner_without_workers_takes_the_file_that_is_there_after_recycle(tmp_path):
    write(tmp_path, 1.0)
    async with runner(tmp_path) as embedder:
        old = await embedder.embed(["a"])
        write(tmp_path, 5.0)
        kill(embedder)
        await until(lambda: embedder.stats().model_changed is not None and not embedder.stats().workers)
        await until(lambda: embedder.state == "failed")
        await embedder.recycle()
        await settled(embedder, 1)
        assert not np.array_equal(await embedder.embed(["a"]), old)


async def test_no_request_is_lost_and_no_call_is_mixed_while_the_model_is_taken(tmp_path):
    write(tmp_path, 1.0)
    texts = ["a", "b", "c"] * 200  # several requests in each call
    answers = []
    stop = False

    async def caller(embedder):
        while not stop:
            answers.append(await embedder.embed(texts))

    async with runner(tmp_path, workers=2) as embedder:
        old = await embedder.embed(["a"])
        callers = [asyncio.ensure_future(caller(embedder)) for _ in range(3)]
        await until(lambda: len(answers) > 5)
        write(tmp_path, 5.0)
        await embedder.recycle()
        before = len(answers)
        await until(lambda: len(answers) > before + 5)
        stop = True
        await asyncio.gather(*callers)
        new = await embedder.embed(["a"])
        assert embedder.stats().failed == 0
        assert not np.array_equal(old, new)
    kinds = [{bytes(vector.tobytes()) for vector in vectors[::3]} for vectors in answers]
    assert all(len(kind) == 1 for kind in kinds)
    assert set().union(*kinds) == {old[0].tobytes(), new[0].tobytes()}


# The pure part


def test_the_first_model_is_served_until_another_is_taken():
    model = ServedModel("r")
    assert model.admit({"m": "1", "t": "1"}) == 0
    assert model.admit({"m": "1", "t": "1"}) == 0
    for files, path in (({"m": "2", "t": "1"}, "m"), ({"m": "1"}, "t"), ({"m": "1", "t": "1", "x": "1"}, "x")):
        with pytest.raises(ModelChanged) as caught:
            model.admit(files)
        assert caught.value.path == model.changed == path
    assert model.admit({"m": "1", "t": "1"}) == 0
    assert model.changed is None
    model.renew()
    assert model.admit({"m": "1", "t": "1"}) == 0
    assert model.admit({"m": "2"}) == 1
    with pytest.raises(ModelChanged):  # one was taken, and now all have it
        model.admit({"m": "1", "t": "1"})
    model.renew()
    model.keep()
    with pytest.raises(ModelChanged):
        model.admit({"m": "3"})
    model.forget()
    assert model.admit({"m": "3"}) == 2
