"""Whose fault an exception of a function is: of the data that it was given, or of what it depends on."""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import struct
import sys
import tarfile
import types
import xml.etree.ElementTree as ET
import zipfile
import zlib
from xml.etree.ElementTree import ParseError

import pytest
import requests

from guardrails.errors import CallerError, QueueFull
from runners.worker.engines.verdict import verdict_of


class NoSuchCity(CallerError):
    pass


class BadRow(ValueError):
    pass


class Status(Exception):
    def __init__(self, status):
        self.status_code = status


class BadStatus(ValueError):
    status_code = 502


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        BadRow("x"),
        TypeError("x"),
        KeyError("x"),
        IndexError("x"),
        AttributeError("x"),
        ZeroDivisionError("x"),
        OverflowError("x"),
        AssertionError("x"),
        RecursionError("x"),
        UnicodeDecodeError("utf-8", b"", 0, 1, "x"),
        json.JSONDecodeError("x", "", 0),
        ParseError("x"),
        csv.Error("x"),
        gzip.BadGzipFile("x"),
        lzma.LZMAError("x"),
        struct.error("x"),
        tarfile.ReadError("x"),
        zipfile.BadZipFile("x"),
        zlib.error("x"),
        NoSuchCity("x"),
        Status(404),
        QueueFull("inner"),
        ExceptionGroup("x", [ValueError("x"), ExceptionGroup("x", [KeyError("x"), NoSuchCity("x")])]),
    ],
    ids=repr,
)
def test_what_the_input_causes_is_ignored(error):
    assert verdict_of(error)[0] == "ignored"


@pytest.mark.parametrize(
    "error",
    [
        OSError("x"),
        OSError(28, "no space left"),
        ConnectionError("x"),
        TimeoutError("x"),
        MemoryError("x"),
        RuntimeError("x"),
        ImportError("x"),
        Exception("x"),
        SystemExit(2),
        KeyboardInterrupt(),
        Status(500),
        BadStatus("x"),
        requests.exceptions.JSONDecodeError("x", "", 0),
        requests.exceptions.ConnectionError("x"),
        ExceptionGroup("x", [ValueError("x"), ConnectionError("x")]),
    ],
    ids=repr,
)
def test_what_it_depends_on_causes_is_a_failure(error):
    assert verdict_of(error)[0] == "failure"


def test_what_a_client_was_answered_is_throttling_with_its_wait():
    error = Status(429)
    error.headers = {"retry-after": "7"}
    assert verdict_of(error) == ("throttled", 7.0)


def raised_in(module, error):
    namespace = {"__name__": module, "error": error}
    try:
        exec("raise error", namespace)
    except Exception as exc:
        return exc


def test_a_file_that_pillow_cannot_read_is_the_inputs_fault():
    unidentified = type("UnidentifiedImageError", (OSError,), {"__module__": "PIL"})
    assert verdict_of(unidentified("cannot identify image file"))[0] == "ignored"
    assert verdict_of(raised_in("PIL.ImageFile", OSError("image file is truncated")))[0] == "ignored"
    assert verdict_of(raised_in("PIL.Image", FileNotFoundError(2, "no such file")))[0] == "failure"
    assert verdict_of(raised_in("transformers.hub", OSError("cannot connect")))[0] == "failure"
    assert verdict_of(raised_in(None, OSError("x")))[0] == "failure"


def test_the_names_of_the_standard_decoders_are_those_of_this_python():
    from runners.worker.engines.verdict import _DECODERS

    for name in _DECODERS:
        module, _, cls = name.rpartition(".")
        if not module.startswith("PIL"):
            assert isinstance(sys.modules[module], types.ModuleType)
            assert issubclass(getattr(sys.modules[module], cls), Exception)
    assert ET.ParseError is ParseError
