"""What an embedding runner takes: checks texts, and cuts long lists into requests. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from runners.errors import InvalidInput

#: Characters of one text, at most. Models read a few thousand at best; tokenizing megabytes to throw them away costs
#: seconds.
MAX_CHARACTERS = 100_000
#: One request holds at most so many texts and characters: what a worker must do again if the one before it died.
_PIECE_TEXTS = 64
_PIECE_CHARACTERS = 200_000


def as_pieces(texts: Sequence[str], runner: str) -> list[list[str]]:
    """`texts` as lists that each make one request, in order.

    Raises:
        InvalidInput: they are not a list of texts that can be embedded; the message names the first that is not.
    """
    if isinstance(texts, str | bytes):
        raise InvalidInput(f"{runner}: embed takes a list of texts, not one {type(texts).__name__}: embed([text])")
    if not isinstance(texts, Sequence):
        raise InvalidInput(f"{runner}: embed takes a list of texts, not {type(texts).__name__}: embed(list(texts))")
    if not texts:
        raise InvalidInput(f"{runner}: embed got an empty list; there is nothing to embed")
    pieces: list[list[str]] = [[]]
    characters = 0
    for number, text in enumerate(texts):
        _check(text, number, runner)
        if pieces[-1] and (len(pieces[-1]) >= _PIECE_TEXTS or characters + len(text) > _PIECE_CHARACTERS):
            pieces.append([])
            characters = 0
        pieces[-1].append(text)
        characters += len(text)
    return pieces


def _check(text: object, number: int, runner: str) -> None:
    if not isinstance(text, str):
        raise InvalidInput(f"{runner}: texts[{number}] is a {type(text).__name__}, not a str")
    if not text:
        raise InvalidInput(f"{runner}: texts[{number}] is empty; leave it out, or embed a placeholder of your own")
    if len(text) > MAX_CHARACTERS:
        msg = (
            f"{runner}: texts[{number}] has {len(text):,} characters; at most {MAX_CHARACTERS:,} are taken. "
            "Split it into passages: a model reads only the first few thousand"
        )
        raise InvalidInput(msg)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = (
            f"{runner}: texts[{number}] holds a lone surrogate at character {error.start}, which is no text; "
            "decode its source with errors='replace'"
        )
        raise InvalidInput(msg) from None
