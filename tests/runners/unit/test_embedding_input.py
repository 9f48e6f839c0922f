"""What an embedding runner takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.embedding_input import MAX_CHARACTERS, as_pieces
from runners.errors import InvalidInput

texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), min_size=1, max_size=200)


@given(texts)
def test_pieces_are_the_texts_in_order(given_texts):
    pieces = as_pieces(given_texts, "r")
    assert [text for piece in pieces for text in piece] == given_texts
    assert all(0 < len(piece) <= 64 for piece in pieces)
    assert as_pieces(tuple(given_texts), "r") == pieces


@given(st.lists(st.integers(1, MAX_CHARACTERS), min_size=1, max_size=8))
def test_a_piece_is_bounded_in_characters(lengths):
    for piece in as_pieces(["x" * length for length in lengths], "r"):
        assert sum(map(len, piece)) <= 200_000


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], r"r: embed got an empty list"),
        ("text", r"a list of texts, not one str: embed\(\[text\]\)"),
        (b"text", r"not one bytes"),
        (7, r"a list of texts, not int"),
        (iter(["a"]), r"embed\(list\(texts\)\)"),
        ({"a"}, r"not set"),
        (["a", ""], r"texts\[1\] is empty"),
        (["a", None], r"texts\[1\] is a NoneType, not a str"),
        ([b"a"], r"texts\[0\] is a bytes"),
        (["a", "b", "x" * (MAX_CHARACTERS + 1)], r"texts\[2\] has 100,001 characters; at most 100,000"),
        (["x" * 1_000_000], r"texts\[0\] has 1,000,000 characters"),
        (["ok", "half \udc80"], r"texts\[1\] holds a lone surrogate at character 5"),
    ],
)
def test_what_is_not_text_is_named(value, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        as_pieces(value, "r")
    assert isinstance(caught.value, ValueError)
