"""The production checklist: facts in, findings out.

::

    runners.toml ──▶ config ─┐
                             ├─▶ examine ──▶ findings: ok, warning or failure, why, and what mends it
    /proc, cgroups, Redis, ──┤
    sinks, load test report  │   memory, traffic, services, watching, redis, machine, process: rooms of pure checks
                  gather ────┘

`gather` is the one room that looks at the world; everything else is a function of what it found.
"""

from runners.doctor.checks import CHECKS, examine
from runners.doctor.facts import Facts
from runners.doctor.finding import Finding, Level, Mend
from runners.doctor.gather import gather

__all__ = ["CHECKS", "Facts", "Finding", "Level", "Mend", "examine", "gather"]
