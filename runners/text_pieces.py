"""A text while it is generated, as its reader holds it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from types import TracebackType
from typing import Self

import msgspec

from runners.errors import RunnerCrashed
from runners.protocol.generation import Completion, Piece
from runners.supervision.stream import Stream

_completion = msgspec.msgpack.Decoder(Completion).decode
_piece = msgspec.msgpack.Decoder(Piece).decode


class TextPieces(AsyncIterator[str]):
    """A text that is being generated: iterate over its pieces. Leaving early cancels it; ``async with`` does that for
    certain, and at once.

    Attributes:
        text: what came so far.
        completion: all of it, with the reason it ended and the tokens counted; None before the end.
    """

    def __init__(self, ask: Callable[[], Stream]) -> None:
        self.text = ""
        self.completion: Completion | None = None
        self._pieces = self._read(ask)

    async def _read(self, ask: Callable[[], Stream]) -> AsyncGenerator[str, None]:
        try:
            with ask() as items:
                async for item, _ in items:
                    piece = _piece(item)
                    self.text += piece.text
                    yield piece.text
                assert items.answer is not None  # noqa: S101 - the items have ended
                answer, _ = items.answer
                self.completion = _completion(answer)
        except RunnerCrashed as error:
            error.partial = self.text
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        return await self._pieces.__anext__()

    async def aclose(self) -> None:
        """Cancel what is not generated yet."""
        await self._pieces.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()


__all__ = ["TextPieces"]
