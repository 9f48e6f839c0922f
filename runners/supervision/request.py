"""One request on its way: from the caller to a worker, perhaps to a second one, and back with exactly one answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from guardrails.core.timers import Bucket, TimerWheel
from runners.protocol.parts import Incoming, Parts, Payload
from runners.supervision.exit import Exit

Answer = tuple[msgspec.Raw, Incoming]


class Request:
    """A request that was accepted.

    Attributes:
        id: unique for the runner's life.
        deadline: on the event loop's clock, or None.
        redeliver: whether it may be run again when a worker dies while it runs there.
        deaths: workers that died while they were running it.
        strikes: those among them that may have died of it: not killed from outside.
        proven: whether the last of these cannot have been filled by other requests.
        suspect: whether a worker died while it ran this, so that it runs by itself from then on.
        future: resolves once, with the answer or an error.
        accepted: when it came, on the loop's clock.
        given_at: when the first worker had it; None before.
        given_unfilled: whether the worker that runs it by itself, as a suspect, held little memory before.
        place: its number among those that its present worker was sent; 0 until all of it is on its way.
        affinity: what has the same goes to the same worker, if that has room; None: anywhere.
        size: bytes of body and payload.
        generation: of the model of the worker that had it last; see `ServedModel`.
        abandoned_at: when its caller left, on the loop's clock; None while it waits.
    """

    #: Items that may be on the way before their reader takes some, and how many it took; see `StreamRequest`.
    window = 0
    taken = 0

    __slots__ = (
        "abandoned_at",
        "accepted",
        "affinity",
        "body",
        "bucket",
        "deadline",
        "deaths",
        "future",
        "generation",
        "given_at",
        "given_unfilled",
        "id",
        "on_expire",
        "payload",
        "place",
        "proven",
        "redeliver",
        "size",
        "slot",
        "strikes",
        "suspect",
    )

    def __init__(
        self,
        number: int,
        body: bytes,
        payload: Payload,
        *,
        deadline: float | None,
        redeliver: bool,
        future: asyncio.Future[Answer],
    ) -> None:
        self.id = number
        self.body = body
        self.payload = payload
        self.size = len(body) + len(payload)
        self.deadline = deadline
        self.redeliver = redeliver
        self.deaths = 0
        self.strikes = 0
        self.proven = False
        self.suspect = False
        self.given_unfilled = False
        self.future = future
        self.abandoned_at: float | None = None
        self.accepted = 0.0
        self.given_at: float | None = None
        self.affinity: int | None = None
        self.generation = 0
        self.place = 0
        self.slot = 0
        self.bucket: Bucket | None = None
        self.on_expire: Callable[[Request], None]

    @property
    def waited_for(self) -> bool:
        """Whether somebody still wants the answer."""
        return not self.future.done()

    @property
    def begun(self) -> bool:
        """Whether the worker is known to have begun it, even if it runs something else now."""
        return False

    @property
    def paused(self) -> bool:
        """Whether the worker has to wait for the reader before it can go on with it."""
        return False

    def outlived(self, exit: Exit, *, by_itself: bool) -> None:  # noqa: A002
        """The worker that ran it has died; `by_itself` says that no other had filled it. Ends that we cause on purpose
        say nothing about a request; that memory ran out proves nothing unless it had the worker to itself.
        """
        if exit.planned:
            return
        self.deaths += 1
        if exit.from_outside:
            return
        self.suspect = True
        self.strikes += 1
        self.proven = by_itself or not exit.for_memory

    def item(self, body: msgspec.Raw, payload: Incoming) -> bool:  # noqa: ARG002 - for those that can
        """An item of its answer has come. False if it may not have been sent."""
        return False

    def again(self) -> None:
        """It is to be run anew."""

    def expire_at_deadline(self, wheel: TimerWheel, on_expire: Callable[[Request], None]) -> None:
        """Have `on_expire` called with this request then, unless it is answered before."""
        assert self.deadline is not None  # noqa: S101 - who calls has set it
        self.on_expire = on_expire
        self.bucket = bucket = wheel.bucket(self.deadline)
        self.slot = bucket.slot
        bucket.entries.add(self)

    def expire(self) -> None:
        """The time has come (called by the wheel)."""
        self.bucket = None
        self.on_expire(self)

    def answer(self, body: msgspec.Raw, payload: Incoming) -> None:
        """The answer. A second one, or one for a caller that has left, changes nothing."""
        if not self.future.done():
            self.future.set_result((body, payload))
        self._stop_timer()

    def fail(self, error: BaseException) -> None:
        """No answer, and why."""
        if not self.future.done():
            self.future.set_exception(error)
            # The caller may have been cancelled between this and its next turn: nobody then looks at the error, and
            # that is no mistake worth a warning.
            self.future.exception()
        self._stop_timer()

    def abandon(self, now: float) -> None:
        """The caller has left."""
        if self.abandoned_at is None:
            self.abandoned_at = now
        self.future.cancel()
        self._stop_timer()

    def _stop_timer(self) -> None:
        if isinstance(self.payload, Parts):
            self.payload = b""  # a worker may keep the request for a while; the caller's arrays are not kept for that
        bucket = self.bucket
        if bucket is not None:
            self.bucket = None
            bucket.entries.discard(self)
            if not bucket.entries:
                bucket.drop()
