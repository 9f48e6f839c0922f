"""Models of other shapes than the real one, and files that are no models."""

import os
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runners.worker.engines.base import EngineError
from runners.worker.engines.onnx import OnnxEngine

from .conftest import TABLE, VOCABULARY, Driver, gather, ids_and_mask, value, write_model, write_tokenizer

TOKENS = TABLE[[2, 4, 5, 3]]  # [CLS] a b [SEP]


def fails(kind, *words, **options):
    with pytest.raises(EngineError) as caught:
        OnnxEngine(options).load()
    assert caught.value.kind == kind, caught.value
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("pooling", "expected"), [("mean", TOKENS.mean(axis=0)), ("cls", TOKENS[0]), ("max", TOKENS.max(axis=0))]
)
def test_pooling_ignores_the_padding(tiny, pooling, expected):
    plain = Driver(path=str(tiny), pooling=pooling, normalize=False).embed(["a b", "a b c"])
    assert plain[0] == pytest.approx(expected, abs=1e-6)
    unit = Driver(path=str(tiny), pooling=pooling).embed(["a b"])
    assert unit[0] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)


def test_a_zero_vector_stays_zero(tiny):
    zeros = numpy_helper.from_array(np.zeros_like(TABLE), "table")
    write_model(tiny / "model.onnx", **gather(constants=[zeros]))
    assert (Driver(path=str(tiny)).embed(["a"]) == 0).all()


def test_a_text_without_tokens(tiny):
    write_tokenizer(tiny / "tokenizer.json", special=False)
    vectors = Driver(path=str(tiny), normalize=False).embed(["", "a"])
    assert vectors == pytest.approx(TABLE[[0, 4]], abs=1e-6)


def test_int32_inputs_and_another_output_name(tiny):
    write_model(tiny / "model.onnx", **gather("hidden", inputs=ids_and_mask(TensorProto.INT32)))
    assert Driver(path=str(tiny), normalize=False).embed(["a b"])[0] == pytest.approx(TOKENS.mean(axis=0), abs=1e-6)


def test_float16_outputs_come_as_float32(tiny):
    half = gather(
        outputs=[value("last_hidden_state", TensorProto.FLOAT16, ("rows", "tokens", 4))],
        constants=[numpy_helper.from_array(TABLE.astype(np.float16), "table")],
    )
    write_model(tiny / "model.onnx", **half)
    vectors = Driver(path=str(tiny), normalize=False).embed(["a b"])
    assert vectors.dtype == np.float32
    assert vectors[0] == pytest.approx(TOKENS.mean(axis=0), abs=1e-2)


def pooled_model():
    """Vectors of whole texts, not of length 1: the sum over the tokens. It has the token vectors as another output."""
    parts = gather("token_embeddings")
    parts["nodes"].append(
        helper.make_node("ReduceSum", ["token_embeddings", "axis"], ["sentence_embedding"], keepdims=0)
    )
    parts["outputs"].append(value("sentence_embedding", TensorProto.FLOAT, ("rows", 4)))
    parts["constants"].append(numpy_helper.from_array(np.array([1]), "axis"))
    return parts


def test_a_sentence_embedding_is_taken_as_it_is(tiny):
    write_model(tiny / "model.onnx", **pooled_model())
    driver = Driver(path=str(tiny))
    assert driver.info["pooling"] is None
    assert driver.embed(["a b"])[0] == pytest.approx(TOKENS.sum(axis=0), abs=1e-5)
    assert np.linalg.norm(Driver(path=str(tiny), normalize=True).embed(["a b"])[0]) == pytest.approx(1, abs=1e-5)
    fails("bad_option", "pooling", path=str(tiny), pooling="mean")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"inputs": [value("input_ids", TensorProto.INT64, ("r", "t"))]}, ["attention_mask"]),
        ({"inputs": [*ids_and_mask(), value("pixel_values", TensorProto.FLOAT, ("r", 3))]}, ["pixel_values", "float"]),
        ({"inputs": ids_and_mask(shape=(1, 128))}, ["fixed", "dynamic axes"]),
        ({"inputs": ids_and_mask(shape=("r", "t", "x"))}, ["input_ids"]),
    ],
)
def test_other_inputs(tiny, change, words):
    parts = gather(**change)
    if len(parts["inputs"][0].type.tensor_type.shape.dim) == 3:
        parts["outputs"] = [value("last_hidden_state", TensorProto.FLOAT, ("r", "t", "x", 4))]
    write_model(tiny / "model.onnx", **parts)
    fails("model_unsupported", "an embedding model has the inputs", *words, path=str(tiny))


def test_other_outputs(tiny):
    parts = gather()
    parts["nodes"].append(helper.make_node("Shape", ["last_hidden_state"], ["size"]))
    parts["outputs"] = [value("size", TensorProto.INT64, (3,))]
    write_model(tiny / "model.onnx", **parts)
    fails("model_unsupported", "size tensor(int64)", "last_hidden_state", path=str(tiny))


def test_a_model_that_fails_on_its_longest_text(tiny):
    write_tokenizer(tiny / "tokenizer.json", {**VOCABULARY, "a": 60})
    fails("model_unsupported", "max_tokens", "another model", path=str(tiny))


@pytest.mark.parametrize("content", [b"this is text", os.urandom(4000), b"\x00" * 100])
def test_files_that_are_no_models(tiny, content):
    (tiny / "model.onnx").write_bytes(content)
    fails("model_invalid", "model.onnx", path=str(tiny))


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_model_cut_off(tmp_path, minilm, part):
    whole = minilm[0].read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole[: int(len(whole) * part)])
    fails("model_invalid", "cut off", path=str(tmp_path), tokenizer=str(minilm[1]))


def test_an_unknown_operator(tiny):
    parts = gather()
    parts["nodes"] = [helper.make_node("Frobnicate", ["table", "input_ids"], ["last_hidden_state"])]
    write_model(tiny / "model.onnx", **parts)
    fails("model_invalid", "Frobnicate", path=str(tiny))


@pytest.mark.parametrize("location", ["../secret.bin", "sub/../../secret.bin", "absolute", "link.bin"])
def test_weights_outside_the_models_folder_are_not_read(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    write_tokenizer(folder / "tokenizer.json")
    TABLE.tofile(tmp_path / "secret.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    table = onnx.TensorProto(name="table", data_type=TensorProto.FLOAT, dims=TABLE.shape)
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value=str(tmp_path / "secret.bin") if location == "absolute" else location)
    graph = gather(constants=[table])
    model = helper.make_model(
        helper.make_graph(graph["nodes"], "tiny", graph["inputs"], graph["outputs"], graph["constants"]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    fails("model_invalid", path=str(folder))


def test_broken_tokenizers(tiny):
    for content in ("{", "[]", '{"version": "1.0"}'):
        (tiny / "tokenizer.json").write_text(content)
        fails("tokenizer_invalid", "tokenizer.json", path=str(tiny))


def test_options_that_do_not_fit(tiny):
    fails("bad_option", "special tokens", path=str(tiny), max_tokens=2)
    fails("bad_option", "NoSuchProvider", "CPUExecutionProvider", path=str(tiny), providers=["NoSuchProvider"])
    fails("bad_option", "treads", path=str(tiny), treads=1)


@pytest.mark.parametrize("module", ["onnxruntime", "tokenizers", "numpy"])
def test_a_missing_package_is_named(tiny, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    fails("missing_extra", module, path=str(tiny))


def test_texts_are_cut_to_max_tokens(tiny):
    vectors = Driver(path=str(tiny), max_tokens=4, normalize=False).embed(["a b c c c c", "a b"])
    assert vectors[0] == pytest.approx(vectors[1])


def test_the_budget_is_no_less_than_the_longest_text(tiny):
    assert Driver(path=str(tiny), max_tokens=100, token_budget=10).info["token_budget"] == 100
