"""A place on the loopback for the real Sentry SDK to send to: it takes envelopes apart as Sentry's relay does."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import sentry_sdk


@dataclass(frozen=True)
class Item:
    """One item of an envelope: ``event``, ``transaction``, ``check_in``, ``span``, ``client_report`` ..."""

    type: str
    headers: dict[str, Any]
    body: dict[str, Any]


@dataclass
class SentrySink:
    """Attributes:
    dsn: what to give to `sentry_sdk.init`.
    raw: every byte that came, uncompressed.
    items: all items, in order.
    """

    dsn: str
    raw: bytearray = field(default_factory=bytearray)
    items: list[Item] = field(default_factory=list)
    encodings: list[str | None] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [item.body for item in self.items if item.type == kind]

    @property
    def events(self) -> list[dict[str, Any]]:
        return self.of("event")

    def wait(self, condition: Callable[[], object], seconds: float = 10.0) -> None:
        """Until `condition` holds. What is sent is sent by a thread of the SDK's."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain; there came {self.items}"
            time.sleep(0.003)

    def flushed(self) -> None:
        """All that the SDK was given until now has come."""
        sentry_sdk.flush(timeout=10)

    def take(self, body: bytes, encoding: str | None) -> None:
        self.encodings.append(encoding)
        if encoding == "gzip":
            body = gzip.decompress(body)
        else:
            assert encoding is None, f"content-encoding {encoding}"
        self.raw += body
        rest = body
        line, _, rest = rest.partition(b"\n")
        json.loads(line)
        while rest.strip():
            line, _, rest = rest.partition(b"\n")
            headers = json.loads(line)
            length = headers.get("length")
            if length is None:
                payload, _, rest = rest.partition(b"\n")
            else:
                payload, rest = rest[:length], rest[length:].removeprefix(b"\n")
            self.items.append(Item(headers["type"], headers, json.loads(payload)))


@contextmanager
def sentry_sink() -> Iterator[SentrySink]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.headers["Content-Type"] == "application/x-sentry-envelope"
            sink.take(body, self.headers.get("Content-Encoding"))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink = SentrySink(f"http://public@127.0.0.1:{server.server_port}/7")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="sink", daemon=True)
    thread.start()
    try:
        yield sink
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def sentry(sink: SentrySink, **options: Any) -> Iterator[Any]:
    """The SDK, initialised to send there, without what would change this process for good (its default integrations
    replace parts of the standard library).
    """
    with sentry_sdk.isolation_scope():
        sentry_sdk.init(
            sink.dsn,
            default_integrations=False,
            auto_enabling_integrations=False,
            enable_backpressure_handling=False,
            **options,
        )
        client = sentry_sdk.get_client()
        try:
            yield client
        finally:
            client.close(timeout=10)
            sentry_sdk.get_global_scope().set_client(None)
