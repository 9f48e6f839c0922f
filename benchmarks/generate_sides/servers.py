"""Other programs that serve chats: started on a free port of the loopback, asked over HTTP, ended by process id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.generate_sides.load import Heard, Listen, Messages

_START = 60.0
_END = 5.0


@dataclass(frozen=True)
class Setting:
    """What all sides are given."""

    path: str
    slots: int
    threads: int
    context: int


@dataclass(frozen=True)
class Server:
    """A program. `command` makes its command line from the setting, a port and a folder for its files."""

    name: str
    command: Callable[[Setting, int, Path], list[str]]
    health: str

    @contextlib.asynccontextmanager
    async def run(self, setting: Setting) -> AsyncIterator[Listen]:
        """Start it, wait until it answers, end it."""
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            folder = Path(name)
            port = _free_port()
            with (folder / "log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *self.command(setting, port, folder),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            try:
                await self._until_up(process, port, folder / "log")
                yield _listener(port)
            finally:
                await _end(process)

    async def _until_up(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        until = time.monotonic() + _START
        while time.monotonic() < until:
            if process.returncode is not None:
                break
            with contextlib.suppress(OSError, EOFError, ValueError):
                if await _get(port, self.health) == 200:
                    return
            await asyncio.sleep(0.1)
        tail = (await asyncio.to_thread(log.read_bytes))[-600:].decode(errors="replace")
        raise RuntimeError(f"{self.name} did not come up (exit status {process.returncode}): {tail}")


def llama_server(binary: str, *, best: bool) -> Server:
    """The C++ server. With `best`, what makes it fastest at this load: flash attention, a KV cache twice as large, as
    its slots do not share what they have in common, moved prefixes, and no copies of idle slots. One KV cache for all
    slots (``-kvu``) makes it slower.
    """

    def command(setting: Setting, port: int, _: Path) -> list[str]:
        words = [binary, "-m", setting.path, "--host", "127.0.0.1", "--port", str(port), "--no-webui"]
        words += ["-np", str(setting.slots), "-t", str(setting.threads)]
        if not best:
            return [*words, "-c", str(setting.context)]
        return [*words, "-c", str(2 * setting.context), "-fa", "on", "--cache-reuse", "32", "-cram", "0"]

    return Server("llama-server, best flags" if best else "llama-server", command, "/health")


def llama_cpp_server(python: str, *, best: bool) -> Server:
    """The server that comes with llama-cpp-python; it serves one after the other. With `best`, with flash attention."""

    def command(setting: Setting, port: int, _: Path) -> list[str]:
        options = {
            "model": setting.path,
            "host": "127.0.0.1",
            "port": port,
            "n_ctx": setting.context,
            "n_threads": setting.threads,
            "n_threads_batch": setting.threads,
            "flash_attn": str(best).lower(),
            "interrupt_requests": "false",
        }
        return [python, "-m", "llama_cpp.server", *(w for name, v in options.items() for w in (f"--{name}", str(v)))]

    return Server("llama_cpp.server, best flags" if best else "llama_cpp.server", command, "/v1/models")


def example_server(python: str, script: str) -> Server:
    """The server in the examples of llama-cpp-python's source, which batches."""

    def command(setting: Setting, port: int, folder: Path) -> list[str]:
        config: dict[str, Any] = {
            "server": {"host": "127.0.0.1", "port": port},
            "model": {
                "path": setting.path,
                "alias": "m",
                "n_ctx": 2 * setting.context,
                "n_seq_max": setting.slots,
                "n_batch": 512,
                "n_ubatch": 512,
                "threads": setting.threads,
                "threads_batch": setting.threads,
                "flash_attn": True,
                "kv_unified": True,
                "store_logits": False,
                "max_output_tokens": 256,
            },
        }
        (folder / "config.json").write_text(json.dumps(config))
        return [python, script, "-C", str(folder / "config.json")]

    return Server("examples/server", command, "/v1/models")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _END)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# HTTP, as little of it as will do: what the client computes is taken from the server's cores


async def _get(port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
        return int((await reader.readline()).split()[1])
    except IndexError:
        raise EOFError from None
    finally:
        writer.close()


def _listener(port: int) -> Listen:
    async def listen(messages: Messages, most: int, heard: Heard) -> None:
        asked = {"model": "m", "messages": messages, "max_tokens": most, "temperature": 0.0, "stream": True}
        body = json.dumps(asked).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            async for line in _lines(reader):
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                said = json.loads(line[6:])
                if "error" in said:
                    raise RuntimeError(str(said["error"]))
                if said.get("choices") and said["choices"][0]["delta"].get("content"):
                    heard.piece()
        finally:
            writer.close()

    return listen


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The lines of an answer's body, whole or chunked."""
    status = (await reader.readline()).split()
    chunked = False
    while (header := (await reader.readline()).strip().lower()) != b"":
        chunked = chunked or (header.startswith(b"transfer-encoding:") and b"chunked" in header)
    if len(status) < 2 or status[1] != b"200":
        raise RuntimeError(
            f"answered {b' '.join(status).decode()}: {(await reader.read(300)).decode(errors='replace')}"
        )
    rest = b""
    while True:
        if chunked:
            size = int((await reader.readline()).split(b";")[0] or b"0", 16)
            data = await reader.readexactly(size)
            await reader.readline()
        else:
            data = await reader.read(65536)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
    if rest:
        yield rest


def from_environment() -> list[tuple[str, Server | None, str]]:
    """The servers that the environment names: ``(name, server, what to set where it is None)``."""
    binary = os.environ.get("LLAMA_SERVER")
    python = os.environ.get("LLAMA_CPP_SERVER_PYTHON")
    script = os.environ.get("LLAMA_CPP_EXAMPLE_SERVER")
    unset = "LLAMA_CPP_SERVER_PYTHON is not set"
    return [
        ("llama-server", llama_server(binary, best=False) if binary else None, "LLAMA_SERVER is not set"),
        ("llama-server, best flags", llama_server(binary, best=True) if binary else None, "LLAMA_SERVER is not set"),
        ("llama_cpp.server", llama_cpp_server(python, best=False) if python else None, unset),
        ("llama_cpp.server, best flags", llama_cpp_server(python, best=True) if python else None, unset),
        (
            "examples/server",
            example_server(python, script) if python and script else None,
            unset if not python else "LLAMA_CPP_EXAMPLE_SERVER is not set",
        ),
    ]
