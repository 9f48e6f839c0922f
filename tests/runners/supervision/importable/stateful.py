"""State of a worker: what an initializer and a class leave for the calls."""

import sys

_ready = []


def prepare():
    _ready.append("prepared")


async def prepare_async():
    _ready.append("prepared")


def refuse():
    sys.exit("not today")


class Counter:
    def __init__(self):
        self.calls = [*_ready]

    def __call__(self, value):
        self.calls.append(value)
        return self.calls


def arguments():
    return sys.argv


def span():
    from opentelemetry import trace

    return format(trace.get_current_span().get_span_context().trace_id, "032x")


async def span_async():
    return span()
