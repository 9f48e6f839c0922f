"""What parent and child say to each other, and how. Both sides import this package, and meet nowhere else.

::

    parent                                                   child
      │  Start(spec) ───────────────────────────────────────▶  │  loads and warms the engine
      │  ◀───────────────────────────  Ready(...) or LoadFailed│
      │  Submit(id, body) ──────────────────────────────────▶  │
      │  ◀───────────────────────────────────  Item(id, body)  │  a stream: at most as many as `window` and `More`
      │  More(id, count) ───────────────────────────────────▶  │  allow: the reader has taken so many
      │  Cancel(id) ────────────────────────────────────────▶  │
      │  ◀─────────────────────  Done(id, body) or Failed(id)  │  exactly one for each Submit
      │  Drain() ───────────────────────────────────────────▶  │  answers what it has, then exits
      │                                                        │
      │  the board: one shared page, written by the child:     │
      │  ◀═══  which requests run now, since when, progress    │

Frames go over an inherited socketpair: no port, no pickle. Large buffers go before their message, in slices, and are
read to where they stay (see `runners.protocol.parts`). That was measured to be three times as fast as shared memory,
whose small pages are paid for when they are made, mapped and freed; and nothing is left to give back when a worker
dies. The codec does no I/O (sans-IO), so that it can be tested and fuzzed alone. Sizes are bounded before anything is
allocated for them.
"""
