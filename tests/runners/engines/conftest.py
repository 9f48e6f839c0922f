"""An engine driven directly, and tiny models for the odd cases."""

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from runners.protocol.messages import Submit
from runners.worker.engines.base import EngineError, Job
from runners.worker.engines.onnx import OnnxEngine

#: Token ids; the table of the tiny model has no row for "bad".
VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "bad": 50}
TABLE = np.random.default_rng(7).normal(size=(8, 4)).astype(np.float32)


class Replies:
    def __init__(self):
        self.vectors, self.errors, self.order = {}, {}, []

    def done(self, job, body, payload=b""):
        assert job.id not in self.order
        shape = msgspec.msgpack.decode(body)
        self.vectors[job.id] = np.frombuffer(payload, "<f4").reshape(shape)
        self.order.append(job.id)

    def failed(self, job, error):
        assert job.id not in self.order
        self.errors[job.id] = error
        self.order.append(job.id)


class Board:
    """Remembers every state of the board."""

    def __init__(self):
        self.states = []

    def begin(self, ids):
        assert ids
        self.states.append(tuple(ids))

    def end(self):
        self.states.append(())


class Driver:
    """An engine with somebody to answer to."""

    def __init__(self, **options):
        self.engine = OnnxEngine(options)
        self.info = self.engine.load()
        self.replies, self.board = Replies(), Board()
        self.jobs = 0

    def submit(self, texts, *, alone=False, timeout=None):
        return self.submit_raw(msgspec.msgpack.encode(texts), alone=alone, timeout=timeout)

    def submit_raw(self, body, *, alone=False, timeout=None):
        self.jobs += 1
        job = Job(Submit(self.jobs, timeout, alone, msgspec.Raw(body)), memoryview(b""))
        try:
            self.engine.submit(job)
        except EngineError as error:
            self.replies.failed(job, error.info())
        return self.jobs

    def step(self):
        return self.engine.step(self.replies, self.board)

    def finish(self):
        while self.step():
            pass
        assert sorted(self.replies.order) == list(range(1, self.jobs + 1))
        return self.replies

    def embed(self, texts):
        job = self.submit(texts)
        return self.finish().vectors[job]


def write_tokenizer(path, vocabulary=VOCABULARY, *, special=True):
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    if special:
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    tokenizer.save(str(path))


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def ids_and_mask(kind=TensorProto.INT64, shape=("rows", "tokens")):
    return [value("input_ids", kind, shape), value("attention_mask", kind, shape)]


def write_model(path, nodes, inputs, outputs, constants):
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))


def gather(output="last_hidden_state", **more):
    """The nodes of a model whose token vectors are rows of a table."""
    return {
        "nodes": [helper.make_node("Gather", ["table", "input_ids"], [output])],
        "inputs": ids_and_mask(),
        "outputs": [value(output, TensorProto.FLOAT, ("rows", "tokens", 4))],
        "constants": [numpy_helper.from_array(TABLE, "table")],
        **more,
    }


@pytest.fixture
def tiny(tmp_path):
    """A folder with a tiny model: the vector of a token is its row of `TABLE`."""
    write_model(tmp_path / "model.onnx", **gather())
    write_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path
