import json

import pytest

from runners.worker.engines.base import EngineError
from runners.worker.engines.model_folder import Options, find, parse_options

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def folder(tmp_path):
    """A sentence-transformers folder."""
    root = tmp_path / "st"
    write(root / "modules.json", MODULES)
    write(root / "sentence_bert_config.json", {"max_seq_length": 256})
    write(root / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    write(root / "tokenizer.json", {"truncation": {"max_length": 128}})
    write(root / "tokenizer_config.json", {"model_max_length": 64})
    write(root / "onnx/model.onnx", "model")
    return root


def options(path, **more):
    return Options(path=str(path), **more)


def fails(kind, given, *words):
    with pytest.raises(EngineError) as caught:
        find(given)
    assert caught.value.kind == kind
    for word in words:
        assert word in str(caught.value)


def test_a_sentence_transformers_folder(folder):
    files = find(options(folder))
    assert files.model == folder / "onnx/model.onnx"
    assert files.tokenizer == folder / "tokenizer.json"
    assert (files.max_tokens, files.pooling, files.normalize) == (256, "cls", True)


def test_the_model_file_inside_such_a_folder_is_read_the_same_way(folder):
    assert find(options(folder / "onnx/model.onnx")) == find(options(folder))


def test_options_win_over_the_folder(folder):
    files = find(options(folder, max_tokens=10, pooling="max", normalize=False))
    assert (files.max_tokens, files.pooling, files.normalize) == (10, "max", False)


def test_without_a_normalize_step_vectors_stay_as_they_are(folder):
    write(folder / "modules.json", MODULES[:2])
    assert find(options(folder)).normalize is False


def test_the_newer_way_to_name_the_pooling(folder):
    write(folder / "1_Pooling/config.json", {"pooling_mode": "max"})
    assert find(options(folder)).pooling == "max"


def test_the_transformer_may_have_a_folder_of_its_own(folder):
    (folder / "0_Transformer").mkdir()
    (folder / "onnx/model.onnx").rename(folder / "0_Transformer/model.onnx")
    (folder / "tokenizer.json").rename(folder / "0_Transformer/tokenizer.json")
    write(folder / "modules.json", [{**MODULES[0], "path": "0_Transformer"}, *MODULES[1:]])
    files = find(options(folder))
    assert files.model.parent == files.tokenizer.parent == folder / "0_Transformer"


def test_a_plain_folder_and_a_bare_file(tmp_path):
    write(tmp_path / "model.onnx", "model")
    write(tmp_path / "tokenizer.json", {})
    files = find(options(tmp_path))
    assert (files.max_tokens, files.pooling, files.normalize) == (512, "mean", True)
    assert find(options(tmp_path / "model.onnx")) == files


def test_the_one_model_of_another_name_is_taken(tmp_path):
    write(tmp_path / "model_int8.onnx", "model")
    write(tmp_path / "tokenizer.json", {})
    assert find(options(tmp_path)).model.name == "model_int8.onnx"


def test_the_tokenizer_may_lie_elsewhere(tmp_path):
    write(tmp_path / "a/model.onnx", "model")
    write(tmp_path / "b/tokenizer.json", {})
    for given in ("b", "b/tokenizer.json"):
        files = find(options(tmp_path / "a/model.onnx", tokenizer=str(tmp_path / given)))
        assert files.tokenizer == tmp_path / "b/tokenizer.json"


def test_where_the_longest_text_is_found(folder):
    (folder / "sentence_bert_config.json").unlink()
    assert find(options(folder)).max_tokens == 128
    write(folder / "tokenizer.json", {"truncation": None})
    assert find(options(folder)).max_tokens == 64
    write(folder / "tokenizer_config.json", {"model_max_length": 1000000000000000019884624838656})
    assert find(options(folder)).max_tokens == 512


def test_no_such_path(tmp_path):
    fails("model_not_found", options(tmp_path / "nowhere"), "nowhere")


def test_folders_without_a_model(tmp_path):
    fails("model_not_found", options(tmp_path), "onnx/model.onnx, model.onnx")
    write(tmp_path / "model.safetensors", "weights")
    fails("model_not_found", options(tmp_path), "PyTorch", "export")


def test_several_models_of_other_names(tmp_path):
    write(tmp_path / "onnx/model_int8.onnx", "model")
    write(tmp_path / "onnx/model_fp16.onnx", "model")
    fails("model_not_found", options(tmp_path), "model_fp16.onnx, onnx/model_int8.onnx", "path of one")


def test_empty_and_lfs_files(tmp_path):
    write(tmp_path / "model.onnx", "")
    fails("model_invalid", options(tmp_path), "empty")
    write(tmp_path / "model.onnx", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    fails("model_invalid", options(tmp_path), "git lfs pull")


def test_no_tokenizer(tmp_path):
    write(tmp_path / "model.onnx", "model")
    fails("tokenizer_not_found", options(tmp_path), "tokenizer.json", "tokenizer=")
    write(tmp_path / "vocab.txt", "a")
    fails("tokenizer_not_found", options(tmp_path), "save_pretrained")
    fails("tokenizer_not_found", options(tmp_path, tokenizer=str(tmp_path / "other.json")), "other.json")


@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"])
def test_broken_files_beside_the_model(folder, name):
    write(folder / name, "{broken")
    fails("model_invalid", options(folder), name.rpartition("/")[2], "JSON")


def test_a_broken_tokenizer(folder):
    (folder / "sentence_bert_config.json").unlink()
    write(folder / "tokenizer.json", "{broken")
    fails("tokenizer_invalid", options(folder), "tokenizer.json")


def test_files_of_another_shape(folder):
    write(folder / "modules.json", {"a": 1})
    fails("model_invalid", options(folder), "modules.json")
    write(folder / "modules.json", MODULES)
    write(folder / "1_Pooling/config.json", ["mean"])
    fails("model_invalid", options(folder), "config.json")


def test_steps_that_are_not_done_here(folder):
    write(folder / "modules.json", [*MODULES, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    fails("model_unsupported", options(folder), "Dense")
    write(folder / "modules.json", MODULES)
    write(folder / "1_Pooling/config.json", {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True})
    fails("model_unsupported", options(folder), "cls_token with pooling_mode_mean_tokens")
    write(folder / "1_Pooling/config.json", {"pooling_mode_lasttoken": True})
    fails("model_unsupported", options(folder), "lasttoken")


@pytest.mark.parametrize("path", ["../other", "/etc"])
def test_a_folder_cannot_point_out_of_itself(folder, path):
    write(folder / "modules.json", [MODULES[0], {**MODULES[1], "path": path}])
    fails("model_invalid", options(folder), "points out")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, "path"),
        ({"path": ""}, "path"),
        ({"path": "m", "threads": 0}, "threads"),
        ({"path": "m", "max_tokens": "many"}, "max_tokens"),
        ({"path": "m", "pooling": "median"}, "pooling"),
        ({"path": "m", "token_budget": 0}, "token_budget"),
        ({"path": "m", "providers": []}, "providers"),
        ({"path": "m", "normalise": True}, "normalise"),
    ],
)
def test_options_are_checked_by_name(given, named):
    with pytest.raises(EngineError, match=named) as caught:
        parse_options(given)
    assert caught.value.kind == "bad_option"
