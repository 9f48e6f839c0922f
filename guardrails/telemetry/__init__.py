"""Where events go: logs, Sentry, OpenTelemetry, Prometheus. Each sink is a module of its own, loaded when it is used.

::

    guards, runners, monitor ──▶ events ──▶ records      ──▶ logs, sentry
                                        └──▶ instruments  ──▶ prometheus, otel

Guards know none of this. `records` says in words what an event means, once for all sinks.
"""
