from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails.core.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512B", 512),
        ("1k", 1024),
        ("1KiB", 1024),
        ("1kb", 1000),
        ("300MiB", 300 * 1024**2),
        ("300 MiB", 300 * 1024**2),
        ("  300mib ", 300 * 1024**2),
        ("2GB", 2 * 1000**3),
        ("2G", 2 * 1024**3),
        ("1.5GiB", 3 * 1024**3 // 2),
        ("1TiB", 1024**4),
        (4096, 4096),
        (1.9, 1),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size):
    assert parse_size(text, "memory") == size


@pytest.mark.parametrize(
    "junk",
    ["", "MiB", "300 XB", "-5MiB", "1e3", "1,5GiB", ".5GiB", "300MiB/s", "learned", "0", "0.5", "9" * 400, "9EiB"],
)
def test_what_is_no_size_is_refused_and_named(junk):
    with pytest.raises(ValueError, match=r"^memory="):
        parse_size(junk, "memory")


@pytest.mark.parametrize("number", [0, -1, 0.5, float("nan"), float("inf"), 2**63])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(ValueError, match=re.escape(f"memory={number!r}")):
        parse_size(number, "memory")


@pytest.mark.parametrize("thing", [None, True, b"300MiB", [300], object()])
def test_what_is_neither_text_nor_number_is_a_type_error(thing):
    with pytest.raises(TypeError, match=f"^memory takes a size .* not {type(thing).__name__}$"):
        parse_size(thing, "memory")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "0.977 KiB"),
        (314_572_800, "300 MiB"),
        (1024**4, "1 TiB"),
        (-(1024**2), "-1 MiB"),
        (999.9, "0.976 KiB"),
        (999.9 * 1024**2, "0.976 GiB"),
    ],
)
def test_sizes_are_written_with_three_digits(size, text):
    assert format_size(size) == text


@given(st.integers(1, 999 * 1024**4))
def test_a_written_size_reads_back_to_three_digits(size):
    text = format_size(size)
    assert "e" not in text
    number, unit = text.split()
    assert abs(parse_size(f"{float(number) * 1000:f} {unit}", "size") / 1000 - size) <= 0.006 * size + 1
