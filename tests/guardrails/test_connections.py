from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import random
import threading

import anyio
import pytest

from guardrails.gates.connections import ConnectionClosed, TooManyConnections, connections
from tests.guardrails.heard import decisions


def empty(guard):
    assert (guard.total, guard._open) == (0, {})
    return True


class WebSocket:
    """As much of Starlette's as a handler sees."""

    def __init__(self, user):
        self.user = user
        self.messages, self._source = anyio.create_memory_object_stream(10)

    async def receive_text(self):
        return await self._source.receive()

    def disconnect(self):
        self.messages.close()

    def close(self):
        self.messages.close()
        self._source.close()


@pytest.fixture
def socket():
    sockets = []

    def build(user):
        sockets.append(WebSocket(user))
        return sockets[-1]

    yield build
    for each in sockets:
        each.close()


# So many a key


@pytest.mark.anyio
async def test_one_too_many_is_refused():
    guard = connections(per_key=2, name="chat")
    async with guard.connection("ada"), guard.connection("ada"):
        with pytest.raises(TooManyConnections, match="chat: 2 connections of this key are open") as caught:
            async with guard.connection("ada"):
                raise AssertionError("it was let in")
        assert caught.value.reason == "too_many_connections"
        async with guard.connection("bob"):
            assert (guard.total, guard.count("ada"), guard.count("bob"), guard.count("eve")) == (3, 2, 1, 0)
    assert empty(guard)


@pytest.mark.anyio
async def test_all_together_have_a_limit_too():
    guard = connections(per_key=2, max_total=2)
    async with guard.connection("ada"), guard.connection("bob"):
        with pytest.raises(TooManyConnections, match="2 connections are open") as caught:
            await guard.connection("eve").__aenter__()
        assert caught.value.reason == "too_many_in_total"
    assert empty(guard)


@pytest.mark.anyio
async def test_an_error_gives_the_place_back_and_stays_itself():
    guard = connections(per_key=1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with guard.connection("ada"):
                raise ZeroDivisionError
    assert empty(guard)


@pytest.mark.anyio
async def test_a_cancellation_gives_the_place_back(idle):
    guard = connections(per_key=1, idle_timeout=100)

    async def handler():
        async with guard.connection("ada"):
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await idle()
        assert guard.total == 1
        tasks.cancel_scope.cancel()
    assert empty(guard)


# Idle


@pytest.mark.anyio
async def test_an_idle_connection_is_closed_and_its_handler_cleans_up(clock, idle):
    guard, ends = connections(per_key=1, idle_timeout=10, clock=clock, name="chat"), []

    async def handler():
        try:
            async with guard.connection("ada") as connection:
                try:
                    await anyio.sleep_forever()
                finally:
                    ends.append((connection.closed, guard.total))
        except ConnectionClosed as error:
            ends.append((error.guard, error.reason, str(error)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await idle()
        clock.advance(9)
        await idle()
        assert ends == []
        clock.advance(1)
    assert ends == [("idle", 0), ("chat", "idle", "chat: connection closed: idle")]
    assert empty(guard)


@pytest.mark.anyio
async def test_one_that_is_touched_is_not_idle(clock, idle):
    guard, ended = connections(per_key=1, idle_timeout=10, clock=clock), []
    opened = []

    async def handler():
        with pytest.raises(ConnectionClosed):
            async with guard.connection("ada") as connection:
                opened.append(connection)
                await anyio.sleep_forever()
        ended.append(clock.now())

    start = clock.now()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await idle()
        for _ in range(5):
            clock.advance(9)
            opened[0].touch()
            assert opened[0].idle_for == 0
            await idle()
        assert ended == []
        clock.advance(9.5)
        await idle()
        assert opened[0].idle_for == 9.5
        clock.advance(0.5)
    assert ended == [start + 55]


@pytest.mark.anyio
async def test_on_the_real_clock():
    guard = connections(per_key=1, idle_timeout=0.01)
    with pytest.raises(ConnectionClosed):
        async with guard.connection("ada"):
            await anyio.sleep(30)
    assert empty(guard)
    await anyio.sleep(0)


@pytest.mark.anyio
async def test_a_handler_that_ends_well_though_it_was_closed_has_ended_well(clock):
    guard = connections(per_key=1)
    async with guard.connection("ada") as connection:
        connection.close()
        connection.close("again")
        assert (connection.closed, guard.total) == ("closed", 0)
        with contextlib.suppress(anyio.get_cancelled_exc_class()):
            await anyio.lowlevel.checkpoint()
    assert empty(guard)


@pytest.mark.anyio
async def test_an_error_while_it_is_closed_stays_itself():
    guard = connections(per_key=1)
    with pytest.raises(ValueError, match="of the handler"):
        async with guard.connection("ada") as connection:
            connection.close()
            raise ValueError("of the handler")
    assert empty(guard)


@pytest.mark.anyio
async def test_cancelled_from_outside_it_stays_a_cancellation(idle):
    guard, seen = connections(per_key=1), []

    async def handler():
        try:
            async with guard.connection("ada"):
                await anyio.sleep_forever()
        except BaseException as exc:
            seen.append(isinstance(exc, anyio.get_cancelled_exc_class()))
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await idle()
        tasks.cancel_scope.cancel()
    assert seen == [True]


# The oldest makes way


@pytest.mark.anyio
async def test_the_oldest_of_the_same_key_makes_way(idle):
    guard, ends = connections(per_key=2, when_full="close_oldest"), []

    async def handler(user, name):
        try:
            async with guard.connection(user):
                await anyio.sleep_forever()
        except ConnectionClosed as error:
            ends.append((name, error.reason))

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(handler, "ada", number)
            tasks.start_soon(handler, f"other {number}", number)
            await idle()
        assert ends == [(0, "replaced"), (1, "replaced")]
        assert (guard.count("ada"), guard.total) == (2, 6)
        tasks.cancel_scope.cancel()
    assert empty(guard)


@pytest.mark.anyio
async def test_nobody_elses_makes_way_when_all_places_are_taken(idle):
    guard = connections(per_key=5, max_total=2, when_full="close_oldest")
    async with guard.connection("ada"):
        with pytest.raises(ConnectionClosed):
            async with guard.connection("bob"):
                async with guard.connection("bob"):
                    with pytest.raises(TooManyConnections, match="2 connections are open"):
                        guard.open("eve")
                    assert (guard.count("ada"), guard.count("bob")) == (1, 1)
                    await anyio.sleep_forever()
    assert empty(guard)


# Handlers


@pytest.mark.anyio
async def test_a_websocket_handler(clock, idle, socket):
    guard = connections(per_key=1, idle_timeout=10, key=lambda websocket: websocket.user, clock=clock)
    heard = []

    @guard
    async def chat(websocket):
        """Talks."""
        try:
            while True:
                heard.append(await websocket.receive_text())
                guard.touch()
        except anyio.EndOfStream:
            return "done"

    assert (chat.__name__, chat.__doc__) == ("chat", "Talks.")
    ada = socket("ada")

    async def run():
        heard.append(await chat(ada))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await idle()
        with pytest.raises(TooManyConnections):
            await chat(socket("ada"))
        for word in ("hola", "mundo"):
            clock.advance(8)
            await ada.messages.send(word)
            await idle()
        ada.disconnect()
    assert heard == ["hola", "mundo", "done"]
    assert empty(guard)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(advance, clock, idle, 10)
        with pytest.raises(ConnectionClosed):
            await chat(socket("bob"))
    assert empty(guard)


async def advance(clock, idle, seconds):
    await idle()
    clock.advance(seconds)


def test_touch_outside_a_handler_does_nothing():
    connections(per_key=1).touch()


@pytest.mark.anyio
async def test_a_stream_of_events():
    guard = connections(per_key=1, key=lambda user, count=3: user)

    @guard
    async def events(user, count=3):
        for number in range(count):
            assert guard.total == 1
            yield number

    assert [item async for item in events("ada", count=2)] == [0, 1]
    assert empty(guard)
    async with contextlib.aclosing(events("ada")) as stream:
        async for _ in stream:
            with pytest.raises(TooManyConnections):
                await events("ada").asend(None)
            break
    assert empty(guard)


@pytest.mark.anyio
async def test_a_stream_that_falls_silent_is_closed(clock, idle):
    guard, ends = connections(per_key=1, idle_timeout=10, key=lambda: "ada", clock=clock), []

    @guard
    async def events():
        try:
            yield 1
            yield 2
            await anyio.sleep_forever()
        finally:
            ends.append("cleaned")

    async def read():
        try:
            async for item in events():
                ends.append(item)
        except ConnectionClosed as error:
            ends.append(error.reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await idle()
        clock.advance(10)
    assert ends == [1, 2, "cleaned", "idle"]
    assert empty(guard)


@pytest.mark.anyio
async def test_a_stream_whose_reader_stands_still_is_closed_at_its_next_item(clock, idle):
    guard, ended = connections(per_key=1, idle_timeout=10, key=lambda: "ada", clock=clock), []

    @guard
    async def events():
        try:
            while True:
                yield 1
        finally:
            ended.append(True)

    stream = events()
    assert await stream.asend(None) == 1
    clock.advance(10)
    await idle()
    assert (guard.total, ended) == (0, [])
    with pytest.raises(ConnectionClosed):
        await stream.asend(None)
    assert ended == [True]
    assert empty(guard)


@pytest.mark.anyio
async def test_what_a_reader_sends_and_throws_reaches_the_stream():
    guard = connections(per_key=1, key=lambda: "ada")

    @guard
    async def echo():
        given = None
        while True:
            try:
                given = yield given
            except KeyError as error:
                given = f"caught {error.args[0]}"

    stream = echo()
    assert await stream.asend(None) is None
    assert await stream.asend(7) == 7
    assert await stream.athrow(KeyError("x")) == "caught x"
    with pytest.raises(ValueError, match="out"):
        await stream.athrow(ValueError("out"))
    assert empty(guard)


@pytest.mark.anyio
async def test_a_stream_whose_beginning_fails_gives_its_place_back():
    guard = connections(per_key=1, key=lambda: "ada")

    async def broken():
        raise ValueError("at once")
        yield

    for _ in range(2):
        with pytest.raises(ValueError, match="at once"):
            _ = [item async for item in guard(broken)()]
    assert empty(guard)


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])
@pytest.mark.anyio
async def test_a_stream_that_its_reader_drops_is_released_when_it_is_finalised():
    guard = connections(per_key=1, idle_timeout=30, key=lambda: "ada")

    @guard
    async def events():
        yield 1

    stream = events()
    await stream.asend(None)
    assert guard.total == 1
    del stream
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    assert empty(guard)


# Beginning and end as two events: Socket.IO


@pytest.mark.anyio
async def test_open_and_release(clock, idle):
    guard, closed, sessions = connections(per_key=1, idle_timeout=10, clock=clock), [], {}

    async def connect(sid, user):
        async def kick(reason):
            closed.append((sid, reason))

        sessions[sid] = guard.open(user, on_close=kick)

    async def disconnect(sid):
        sessions.pop(sid).release()

    await connect("s1", "ada")
    with pytest.raises(TooManyConnections):
        await connect("s2", "ada")
    await disconnect("s1")
    await connect("s3", "ada")
    clock.advance(5)
    sessions["s3"].touch()
    await idle()
    clock.advance(10)
    await idle()
    await idle()
    assert closed == [("s3", "idle")]
    await disconnect("s3")
    assert empty(guard)


@pytest.mark.anyio
async def test_on_close_may_be_plain_and_may_fail(caplog):
    guard, closed = connections(per_key=1, when_full="close_oldest"), []
    guard.open("ada", on_close=closed.append)
    second = guard.open("ada", on_close=lambda reason: 1 / 0)
    assert closed == ["replaced"]
    with caplog.at_level(logging.ERROR, "guardrails"):
        second.close("bye")
    assert "on_close of a connection failed" in caplog.text
    assert second.closed == "bye"
    assert empty(guard)


@pytest.mark.anyio
async def test_a_coroutine_that_fails_in_on_close_is_logged(caplog, idle):
    guard = connections(per_key=1)

    async def broken(reason):
        raise ValueError(reason)

    with caplog.at_level(logging.ERROR, "guardrails"):
        guard.open("ada", on_close=broken).close("bye")
        await idle()
    assert "ValueError: bye" in caplog.text


@pytest.mark.anyio
async def test_closed_from_another_thread(idle):
    guard, opened, ends = connections(per_key=1, idle_timeout=30), [], []

    async def handler():
        try:
            async with guard.connection("ada") as connection:
                opened.append(connection)
                await anyio.sleep_forever()
        except ConnectionClosed as error:
            ends.append(error.reason)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(handler)
        await idle()
        await anyio.to_thread.run_sync(opened[0].close, "by hand")
    assert ends == ["by hand"]
    assert empty(guard)


def test_loops_in_two_threads_share_a_guard():
    guard, refused = connections(per_key=3), []

    async def main():
        for _ in range(200):
            try:
                async with guard.connection("ada"):
                    await anyio.lowlevel.checkpoint()
                    assert guard.count("ada") <= 3
            except TooManyConnections:
                refused.append(True)

    threads = [threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": b}) for b in ("asyncio", "trio") * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert empty(guard)


@pytest.mark.anyio
@pytest.mark.many
async def test_connections_of_all_kinds_with_random_ends_leave_nothing(clock, idle):
    chance = random.Random(3)
    guard = connections(per_key=3, idle_timeout=2, max_total=6, when_full="close_oldest", clock=clock)
    seen = {"ran": 0, "closed": 0, "refused": 0, "cancelled": 0, "failed": 0}

    async def one(scope, user, steps, fails):
        with scope:
            try:
                async with guard.connection(user):
                    for _ in range(steps):
                        await anyio.lowlevel.checkpoint()
                    if fails:
                        raise KeyError
                    if steps > 8:
                        await anyio.sleep_forever()
                seen["ran"] += 1
            except ConnectionClosed:
                seen["closed"] += 1
            except TooManyConnections:
                seen["refused"] += 1
            except KeyError:
                seen["failed"] += 1
        seen["cancelled"] += scope.cancelled_caught

    async with anyio.create_task_group() as tasks:
        scopes = []
        for _ in range(400):
            scopes.append(anyio.CancelScope())
            tasks.start_soon(one, scopes[-1], chance.randrange(12), chance.randrange(12), chance.random() < 0.2)
            for _ in range(chance.randrange(3)):
                await anyio.lowlevel.checkpoint()
            chance.choice(scopes[-10:]).cancel()
            clock.advance(chance.random() / 5)
        await idle()
        clock.advance(5)
        await idle()
    assert sum(seen.values()) == 400
    assert all(seen.values()), seen
    assert empty(guard)


# Its face


@pytest.mark.anyio
async def test_events_tell_of_each_end(clock):
    guard = connections(per_key=1, clock=clock)
    with decisions() as seen:
        async with guard.connection("ada"):
            clock.advance(5)
            with pytest.raises(TooManyConnections):
                guard.open("ada")
        guard.open("ada").close("bye")
    told = [(type(event).__name__, getattr(event, "reason", None), getattr(event, "seconds", None)) for event in seen]
    assert told == [
        ("ConnectionOpened", None, None),
        ("CallRejected", "too_many_connections", None),
        ("ConnectionEnded", "done", 5),
        ("ConnectionOpened", None, None),
        ("ConnectionEnded", "bye", 0),
    ]


def test_it_describes_itself():
    assert connections(per_key=3).describe() == "connections 'connections': 3 a key"
    guard = connections(per_key=3, max_total=50, idle_timeout=60, name="chat")
    assert guard.describe() == "connections 'chat': 3 a key, 50 in all, idle for 60 s at most"
    assert repr(guard) == "<connections 'chat' 0 open, of 0 keys>"


def test_its_errors_can_be_pickled():
    error = pickle.loads(pickle.dumps(ConnectionClosed("chat", reason="idle")))
    assert (error.guard, error.reason) == ("chat", "idle")


@pytest.mark.parametrize("what", ["function", "generator", "class"])
def test_what_is_no_handler_is_refused(what):
    guard = connections(per_key=1, key=lambda: 1)

    def generator():
        yield

    with pytest.raises(TypeError):
        guard({"function": lambda: 1, "generator": generator, "class": int}[what])


def test_a_decorator_needs_a_key():
    with pytest.raises(TypeError, match="key=function"):
        connections(per_key=1)(anyio.sleep)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"per_key": 0}, ValueError, "per_key"),
        ({"per_key": None}, TypeError, "per_key"),
        ({"per_key": True}, TypeError, "per_key"),
        ({"max_total": 0}, ValueError, "max_total"),
        ({"max_total": 1.5}, TypeError, "max_total"),
        ({"idle_timeout": 0}, ValueError, "idle_timeout"),
        ({"idle_timeout": "1"}, TypeError, "idle_timeout"),
        ({"idle_timeout": float("inf")}, ValueError, "idle_timeout"),
        ({"when_full": "wait"}, ValueError, "when_full"),
        ({"key": "user"}, TypeError, "key"),
    ],
)
def test_misuse_names_the_argument(options, error, named):
    with pytest.raises(error, match=named):
        connections(**{"per_key": 1, **options})
