"""Circuit breaker: stops calling a dependency that fails, and finds out carefully whether it is back.

::

              the window trips                      open_for seconds have passed
    closed ─────────────────────▶ open ───────────────────────────────▶ half-open
      ▲                             ▲          a probe fails                 │
      │                             └────────────────────────────────────────┤
      └──────────────────────────────────────────────────────────────────────┘
                              `success_threshold` probes succeed

(M. Nygard, "Release It!", 2007. The words and defaults are pybreaker's; its listeners and `exclude` work unchanged.)

* Half-open lets exactly `probes` calls through and refuses the others at once. A probe's place is a lease: one that
  hangs longer than `probe_lease` gives it back, and still counts when it ends. A cancelled probe gives it back
  immediately.
* Every change of state starts a new generation. A call that ends in a later one than it was let in changes nothing.
* Half-open ends after `half_open_max` seconds, if that is given: the circuit is open again.
* `throttled` (429) counts as a failure: a provider that refuses everything is as good as down. `ignored` counts as
  nothing.

By hand: `force_open`, `disable`, `metrics_only`, then `enable`; `reset`, `snapshot`.

The rooms: `build` reads the arguments; `circuit` is the guard; `face` what it shows and how it is switched by hand;
`windows` when to trip, and `break_duration` for how long, both pure; `pybreaker_face` pybreaker's words and methods,
`shared_state` its storages; `refusal` the error.

Threads: the lock guards a change of state or a count, never a call. Listeners are called under it, one at a time.
Without them, entering takes no lock in the closed state, and makes no system call.
"""

from guardrails.gates.breaker.break_duration import FromRetryAfter, Growing
from guardrails.gates.breaker.build import breaker
from guardrails.gates.breaker.circuit import Breaker
from guardrails.gates.breaker.face import BreakerSnapshot, State

__all__ = ["Breaker", "BreakerSnapshot", "FromRetryAfter", "Growing", "State", "breaker"]
