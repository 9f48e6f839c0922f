"""The signs that want a person. Each is a pure decider with a name and an action, and may be used without the monitor.

===================  ============================================================  ============
``memory_high``      a limit, or a worker's budget, is nearly used up              `high`
``memory_growth``    a process grows and does not stop                             `growth`
``ai_timeouts``      of the calls of one source, many run out of time              `timeouts`
``memory_crash``     something broke because memory ran out, and said so           `crash`
``slow_at_low_load`` answers take far longer than ever, though few are asked for   `slow`
===================  ============================================================  ============

`exhaustion` knows how programs say that memory has run out; `traffic` counts the calls of a source; `listener` hears
the events, and asks the deciders.
"""
