"""Timeout: cuts off a call that takes too long, and a stream that falls silent.

`total` limits the whole call, `first` a stream's first item, `idle` each further one. The reader's own time between two
items counts towards `total` only. What is left is the ambient deadline of the work inside (`guardrails.core.deadline`).

On asyncio a deadline is an entry in the loop's timer wheel (see `guardrails.core.timers`) that cancels the task, and
the cancellation is told apart from everybody else's as `asyncio.timeout` does it: by `Task.cancelling`. On trio, and
on a fake clock, it is a cancel scope around each step. Neither is ever open while a stream's reader holds an item.

The rooms: `gate` is the guard, `tickets` what it hands out, and what is on the wheel.

Threads: a call is entered and settled by one task; of the guard itself only the bucket at hand changes.
"""

from guardrails.gates.timeout.gate import Timeout, timeout

__all__ = ["Timeout", "timeout"]
