"""The worker's loop: read what has come, do one step, send what is answered.

Reading between any two steps is what lets a cancellation, or a new request for the next pass, arrive in time although
the loop is one thread. While a step runs nothing is read; the parent sees that on the status page.

The answers of a step are sent before the page says that it has ended. Else a slow step would hold up the answers of
the one before it. A step that raises leaves the page as it is: what it was running is what the worker died of.
"""

from __future__ import annotations

from runners.protocol.board import Board
from runners.protocol.messages import Cancel, Drain, More, Submit
from runners.worker.channel import Channel
from runners.worker.engines.base import EngineError, Job, StepEngine, exception_info


class _Steps:
    """The status page, as engines write to it."""

    def __init__(self, channel: Channel, board: Board) -> None:
        self.begin = board.begin
        self._flush = channel.flush
        self._channel = channel
        self._claim = board.claim
        self._end = board.end

    def claim(self, job: Job) -> bool:
        if job.begun:
            return True
        if self._claim(job.number):
            job.begun = True
            return True
        self._channel.dropped(job)
        return False

    def end(self) -> None:
        self._flush()
        self._end()


def serve(channel: Channel, engine: StepEngine, board: Board) -> None:
    """Serve until drained. Returns when everything submitted before the `Drain` has been answered.

    Raises:
        ParentGone: the parent is gone.
    """
    steps = _Steps(channel, board)
    engine.listen(channel.fileno())
    number = 0
    idle = True
    draining = False
    while True:
        # While it drains, paused streams are all that is worth waiting for: their readers may take more, or leave.
        wait = idle and (not draining or channel.streams > 0)
        if wait and not channel.pending and engine.wait():
            wait = False
        for message, payload in channel.poll(wait=wait):
            if isinstance(message, Submit):
                number += 1
                _submit(channel, engine, Job(message, payload, number))
            elif isinstance(message, More):
                engine.more(message.id, message.count)
            elif isinstance(message, Cancel):
                engine.cancel(message.id, channel)
            elif isinstance(message, Drain):
                draining = True
            del message, payload  # else the last one's arrays stay while the next one's come
        idle = not engine.step(channel, steps)
        if idle or channel.due:
            channel.flush()
        if idle and draining and not channel.streams:
            return


def _submit(channel: Channel, engine: StepEngine, job: Job) -> None:
    channel.streams += job.window > 0
    try:
        engine.submit(job)
    except EngineError as error:
        channel.failed(job, error.info())
    except Exception as error:  # memory that there is not, for one: this job's error, and no reason to end the worker
        channel.failed(job, exception_info(error))
