"""Fingerprints of model files, and which files there are."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from runners.worker import fingerprint
from runners.worker.engines.model_folder import all_files, find, parse_options
from runners.worker.fingerprint import fingerprints, identity
from tests.runners.engines.conftest import gather, write_model, write_tokenizer


def one(path):
    return fingerprints([path])[str(path)]


def put_back(path, was):
    os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))


def test_a_small_file_is_its_content(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"same")
    second.write_bytes(b"same")
    assert one(first) == one(second)
    was = first.stat()
    first.write_bytes(b"sane")
    put_back(first, was)
    assert one(first) != one(second)


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "_WHOLE", 1000)
    monkeypatch.setattr(fingerprint, "_SAMPLE", 100)
    path = tmp_path / "large"
    path.write_bytes(bytes(20_000))
    return path


def test_a_large_file_that_is_replaced_is_another_one(large):
    before = one(large)
    assert one(large) == before
    new = large.with_name("new")
    new.write_bytes(bytes(20_000))
    new.rename(large)
    assert one(large) != before


@pytest.mark.parametrize("at", [0, 9_950, 19_999])
def test_a_large_file_rewritten_in_place_with_its_time_put_back(large, at):
    before, was = one(large), large.stat()
    with large.open("r+b") as file:
        file.seek(max(0, at - 400))
        file.write(b"\1" * (20_000 - max(0, at - 400) if at == 19_999 else 800))
    put_back(large, was)
    assert one(large) != before


def test_a_link_is_what_it_points_to(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "a")
    before, seen = one(link), identity([link])
    link.unlink()
    link.symlink_to(tmp_path / "b")
    assert one(link) != before
    assert identity([link]) != seen
    assert identity([tmp_path / "none"]) == [()]


def test_the_files_of_an_onnx_model_are_all_that_its_vectors_depend_on(tmp_path):
    table = np.ones((2000, 4), "f4")
    write_model(tmp_path / "whole.onnx", **gather(constants=[numpy_helper.from_array(table, "table")]))
    onnx.save(
        onnx.load(tmp_path / "whole.onnx"),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
    )
    (tmp_path / "whole.onnx").unlink()
    write_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "README.md").write_text("of no effect")
    found = {file.name for file in all_files(find(parse_options({"path": str(tmp_path)})))}
    assert found == {"model.onnx", "weights.bin", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("name", ["../outside.bin", "/etc/passwd", "missing.bin"])
def test_external_data_outside_the_folder_is_not_looked_at(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.bin").write_bytes(b"x")
    location = name.encode()
    (folder / "model.onnx").write_bytes(b"\x08\x08\x0a\x08location\x12" + bytes([len(location)]) + location)
    write_tokenizer(folder / "tokenizer.json")
    found = all_files(find(parse_options({"path": str(folder)})))
    assert [file.name for file in found] == ["model.onnx", "tokenizer.json"]


def test_the_parts_of_a_split_gguf(tmp_path):
    pytest.importorskip("llama_cpp")
    from runners.worker.engines.llama.loading import parts_of

    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "mm-00001-of-00002.gguf"):
        (tmp_path / name).touch()
    parts = [part.name for part in parts_of(tmp_path / "m-00001-of-00002.gguf")]
    assert parts == ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    assert parts_of(tmp_path / "m.gguf") == [tmp_path / "m.gguf"]
