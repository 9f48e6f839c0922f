"""The engine with the real model, against a plain run of it; and its jobs: cut, alone, cancelled, expired, failing."""

import threading
import time

import msgspec
import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from .conftest import TABLE, Driver

SENTENCE = "the river runs past an old lighthouse while people drink coffee and talk about memory models and bicycles"
WORDS = SENTENCE.split()
TEXTS = [
    "hola", "", "   ", "naïve café ☕ 東京 🚲", "x" * 300, "line\nbreaks\tand tabs", "the " * 500,
    *(" ".join(WORDS[(i * j) % len(WORDS)] for j in range(3 + i * 4)) for i in range(25)),
]  # fmt: skip


class Reference:
    """One text at a time, without padding, in float64 after the model."""

    def __init__(self, model, tokenizer):
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.tokenizer = Tokenizer.from_file(str(tokenizer))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(128)

    def __call__(self, text):
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        vector = self.session.run(None, feed)[0][0].astype(np.float64).mean(axis=0)
        return vector / np.linalg.norm(vector)


@pytest.fixture(scope="module")
def reference(minilm):
    return Reference(*minilm)


@pytest.fixture(scope="module")
def loaded(minilm):
    return Driver(path=str(minilm[0]), tokenizer=str(minilm[1]))


@pytest.fixture
def real(loaded):
    loaded.__dict__.update(replies=type(loaded.replies)(), board=type(loaded.board)(), jobs=0)
    return loaded


def test_what_load_says(real):
    expected = {"dim": 384, "max_tokens": 128, "token_budget": 512, "pooling": "mean", "normalize": True}
    assert expected.items() <= real.info.items()
    assert real.info["lanes"] <= real.info["threads"]
    msgspec.msgpack.encode(real.info)


def test_vectors_are_those_of_a_plain_run(real, reference):
    vectors = real.embed(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 384)
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert vector @ reference(text) >= 0.9999, text[:40]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_texts_of_many_callers_meet_in_one_pass(real, reference):
    jobs = {real.submit([text]): text for text in TEXTS}
    replies = real.finish()
    for job, text in jobs.items():
        assert replies.vectors[job][0] @ reference(text) >= 0.9999
    assert max(map(len, real.board.states)) > real.info["lanes"]


def test_a_large_job_is_cut_and_put_together_in_order(real, reference):
    texts = [" ".join(WORDS[i % 5 :][: 1 + i % 17]) + f" {i}" for i in range(300)]
    job = real.submit(texts)
    vectors = real.finish().vectors[job]
    assert real.board.states.count(()) > 1
    for i in (0, 17, 150, 299):
        assert vectors[i] @ reference(texts[i]) >= 0.9999


def test_a_megabyte_is_cut_where_enough_tokens_are_certain(real, reference):
    texts = ["coffee by the river " * 50_000, "coffee" * 170_000, " " * 1_000_000 + "river", "coffee," * 140_000]
    started = time.monotonic()
    job = real.submit(texts)
    assert time.monotonic() - started < 5
    for text, vector in zip(texts, real.finish().vectors[job], strict=True):
        assert vector @ reference(text) >= 0.9999


def test_no_texts(real):
    assert real.embed([]).shape == (0, 384)


@pytest.mark.parametrize(
    "body", [b"", b"\xc1", msgspec.msgpack.encode("text"), msgspec.msgpack.encode(["a", 1]), b"\x91\xa2\xff\xfe"]
)
def test_what_is_no_list_of_texts_is_refused_alone(real, body):
    bad = real.submit_raw(body)
    good = real.submit(["hola"])
    replies = real.finish()
    assert replies.errors[bad].kind == "input"
    assert "list of strings" in replies.errors[bad].message
    assert good in replies.vectors


def test_the_board_always_shows_what_runs(real):
    jobs = [real.submit([text]) for text in TEXTS]
    answered = 0
    while real.step():
        # What was answered is off the board, and what runs on is on it.
        assert not set(real.board.states[-1]) & set(real.replies.order)
        assert len(real.replies.order) >= answered
        answered = len(real.replies.order)
    assert real.board.states[-1] == ()
    assert {job for state in real.board.states for job in state} == set(jobs)


def test_a_job_alone_runs_with_nothing_beside_it(real):
    before = [real.submit(["hola mundo", "adios"]) for _ in range(3)]
    suspect = real.submit(["hola mundo", "a text of another length than the first"], alone=True)
    after = [real.submit(["hola mundo"]) for _ in range(3)]
    replies = real.finish()
    assert set(replies.vectors) == {*before, suspect, *after}
    assert (suspect,) in real.board.states
    assert all(state == (suspect,) for state in real.board.states if suspect in state)


def test_a_cancelled_job_is_dropped_before_it_costs_anything(real):
    kept, dropped = real.submit(["hola"]), real.submit(["mundo"] * 5)
    real.engine.cancel(dropped, real.replies)
    real.engine.cancel(dropped, real.replies)
    real.engine.cancel(999, real.replies)
    replies = real.finish()
    assert replies.errors[dropped].kind == "cancelled"
    assert all(dropped not in state for state in real.board.states)
    assert kept in replies.vectors


def test_a_job_cancelled_half_way_is_answered_once_when_nothing_of_it_runs(real):
    job = real.submit([" ".join(WORDS * 6)] * 40)
    real.step()
    steps = real.board.states.count(())
    real.engine.cancel(job, real.replies)
    replies = real.finish()
    assert replies.errors[job].kind == "cancelled"
    assert real.board.states.count(()) <= steps + 1


def test_a_job_whose_deadline_passed_is_dropped(real):
    late, good = real.submit(["hola"], timeout=0), real.submit(["hola"])
    replies = real.finish()
    assert replies.errors[late].kind == "expired"
    assert good in replies.vectors


def test_only_the_culprit_of_a_failing_pass_fails(tiny):
    driver = Driver(path=str(tiny))
    jobs = [driver.submit(texts) for texts in (["a b", "c"], ["a bad"], ["b a"], ["a b", "bad b", *["c"] * 200])]
    replies = driver.finish()
    assert set(replies.errors) == {jobs[1], jobs[3]}
    for job in (jobs[1], jobs[3]):
        assert replies.errors[job].kind == "exception"
        assert "indices" in replies.errors[job].message
        assert "onnxruntime" in replies.errors[job].type
    expected = TABLE[[2, 5, 4, 3]].mean(axis=0)
    assert replies.vectors[jobs[2]][0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert driver.embed(["a"]).shape == (1, 4)


@pytest.mark.parametrize(("threads", "lanes"), [(1, None), (2, 1), (2, 2), (3, 3)])
def test_threads_and_lanes(minilm, reference, threads, lanes):
    driver = Driver(path=str(minilm[0]), tokenizer=str(minilm[1]), threads=threads, lanes=lanes, token_budget=128)
    assert driver.info["lanes"] == (lanes or 1)
    vectors = driver.embed(TEXTS[:8])
    for text, vector in zip(TEXTS[:8], vectors, strict=True):
        assert vector @ reference(text) >= 0.9999


def test_nothing_new_starts_beside_a_lane_that_is_stuck(tiny, monkeypatch):
    driver = Driver(path=str(tiny), threads=2, lanes=2)
    release, embed = threading.Event(), driver.engine._model.embed

    def stuck(rows):
        if any(len(row) == 3 for row in rows):  # one word between the special tokens
            release.wait(30)
        return embed(rows)

    monkeypatch.setattr(driver.engine._model, "embed", stuck)
    hung = driver.submit(["a"], alone=False)
    longer = [driver.submit([" ".join("ab" * 20)]) for _ in range(2)]
    passes = 0
    timer = threading.Timer(0.5, release.set)
    timer.start()
    while driver.step() and hung not in driver.replies.vectors:
        longer.append(driver.submit([" ".join("ab" * 20)]))
        passes += 1
    timer.join()
    assert 1 < passes <= 2 + 64
    driver.finish()
