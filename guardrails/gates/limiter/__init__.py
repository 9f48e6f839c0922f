"""Limiter: how much may be called in a time, in requests, in tokens, or in both at once.

::

    tokens drip in at the rate ──▶ ╭────────╮
                                   │ bucket │ ──▶ each call takes what it costs, from every bucket or from none
    at most `burst` stay in it     ╰────────╯     and waits in a queue, first in first out, while they do not hold it

* In no window of `w` seconds is more than ``burst + rate x w`` let in. Waiting is by arrival, whatever the cost: a
  heavy call is not overtaken by light ones, and so never starves.
* What a call will cost may be an estimate: `correct` it when the usage is known, `refund` it when nothing was used.
* A 429 with Retry-After drains the bucket until then; with `adaptive`, every 429 also lowers the rate for a while.

Built on aiolimiter 1.3, as follows. Taken: its words (`max_rate`, `time_period`, `acquire(amount)`, `has_capacity`,
``async with``), its defaults (60 seconds; a burst of the whole rate), and that a waiter's time is computed and not
polled for. Not taken: its queue, which serves the lowest amount first and so starves heavy calls; the event loop's
clock, which binds it to one loop and cannot be moved by a test; waiting without bound; and its arithmetic, for it has
one dimension, and cannot give back or be drained (see `bucket`). So nothing of it is imported.

The rooms::

    build        limiter(...): reads and checks the arguments, with `settings`
      │
    gate         the guard: guarded calls, and what is learnt from them
      │
    face         acquire, drain, reset, available: by hand
      │
    turnstile    lets in, has wait, turns away                            one lock
      │
    lane         one key: its buckets, its queue, its share of the rate   many
      │
    bucket       the arithmetic, pure; `adaptive` too
"""

from guardrails.gates.limiter.adaptive import AdaptiveRate
from guardrails.gates.limiter.build import limiter
from guardrails.gates.limiter.gate import Limiter
from guardrails.gates.limiter.reservation import Reservation
from guardrails.gates.limiter.signals import Drained, RateChanged, RateLimited

__all__ = ["AdaptiveRate", "Drained", "Limiter", "RateChanged", "RateLimited", "Reservation", "limiter"]
