"""A worker's life: take the spec, load the engine, serve until the parent says so or is gone.

No orphans. A worker ends when (1) the socket to the parent reports end-of-file, which every death of the parent causes;
(2) on Linux the kernel kills it with its parent (PR_SET_PDEATHSIG), so that even one that is stuck in native code
ends. The kernel counts the thread that started the worker as the parent, which is the event loop's. On other systems
only (1) holds.

It has a session and process group of its own, so a Ctrl-C in the parent's terminal does not reach it, and takes no
notice of SIGTERM and SIGINT, which a service manager sends to all processes of a service: the parent decides.
Nothing here writes to standard output: that, and standard error, belong to the user's code and are captured by the
    parent.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import os
import signal
import socket
import sys
import threading
from typing import Any, NoReturn

from runners.protocol.board import Board
from runners.protocol.frames import child_decoder
from runners.protocol.messages import LoadFailed, Ready, Start
from runners.spec import Faults, WorkerSpec
from runners.worker.channel import Channel, ParentGone
from runners.worker.engines.base import EngineError, StepEngine, exception_info
from runners.worker.faults import FaultyEngine
from runners.worker.fingerprint import fingerprints, identity
from runners.worker.resources import apply
from runners.worker.serve import serve

_PR_SET_PDEATHSIG = 1
_FOR_THE_PARENT = (signal.SIGTERM, signal.SIGINT)
#: Exit status of a worker that said `LoadFailed`.
LOAD_FAILED = 3


def main() -> None:
    """Run a worker on the descriptors named on the command line: ``--socket N --board N --parent PID --resources
    JSON``.
    """
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    del sys.argv[1:]  # ours, and nothing that the function's libraries should parse
    _die_with(int(arguments["--parent"]))
    apply(arguments["--resources"])
    faulthandler.enable()  # a segmentation fault then leaves the Python stack in the last lines of standard error
    _leave_signals_to_the_parent()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            line_buffering=True
        )  # a pipe is buffered in blocks, and what a killed worker holds is lost
    channel = Channel(socket.socket(fileno=int(arguments["--socket"])), child_decoder())
    board = Board(int(arguments["--board"]))
    try:
        _live(channel, board)
    except ParentGone:
        os._exit(0)  # nobody is left to answer, and the engine's destructors may take their time


def _live(channel: Channel, board: Board) -> None:
    start, _ = channel.receive()
    if not isinstance(start, Start):
        msg = f"the parent began with {type(start).__name__} instead of Start"
        raise TypeError(msg)
    spec = start.spec
    sys.path[:] = [*spec.sys_path, *(entry for entry in sys.path if entry not in spec.sys_path)]
    try:
        engine = make_engine(spec)
        info, files = _load(engine)
    except EngineError as error:
        _refuse(channel, LoadFailed(error.info(trace=True)))
    except Exception as error:
        _refuse(channel, LoadFailed(exception_info(error)))
    channel.send(Ready(engine.capacity, info, files, engine.ahead, engine.recallable))
    serve(channel, engine, board)
    engine.close()


def _load(engine: StepEngine) -> tuple[dict[str, Any], dict[str, str]]:
    """Load it; returns its facts and the fingerprints of its files, which are those that were loaded."""
    files = engine.files()
    before = identity(files)
    info = engine.load()
    loaded = fingerprints(files)
    if identity(files) != before or engine.files() != files:
        raise EngineError("model_changed", f"{files[0]} was changed while it was being loaded; load it again")
    return info, loaded


def make_engine(spec: WorkerSpec) -> StepEngine:
    """The engine that `spec` names, not loaded yet."""
    engine: StepEngine
    if spec.engine == "function":
        from runners.worker.engines.function import FunctionEngine  # noqa: PLC0415 - only what runs is loaded

        engine = FunctionEngine(spec.options)
    elif spec.engine == "onnx":
        from runners.worker.engines.onnx import OnnxEngine  # noqa: PLC0415

        engine = OnnxEngine(spec.options)
    elif spec.engine == "llama":
        try:
            from runners.worker.engines.llama.engine import LlamaEngine  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise EngineError("missing_extra", error.name or "llama_cpp") from error
        engine = LlamaEngine(spec.options)
    else:
        raise EngineError("bad_option", f"there is no engine {spec.engine!r}")
    return FaultyEngine(engine, spec.faults) if spec.faults != Faults() else engine


def _refuse(channel: Channel, message: LoadFailed) -> NoReturn:
    channel.send(message)
    sys.stderr.flush()
    os._exit(LOAD_FAILED)


def _leave_signals_to_the_parent() -> None:
    """A service manager, or a terminal, sends SIGTERM and SIGINT to all processes; the parent decides when workers end.

    It is a handler: programs that the worker starts would inherit an ignored signal, and could not be ended by it.
    """
    for number in _FOR_THE_PARENT:
        signal.signal(number, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FOR_THE_PARENT)  # the parent blocks them until here
    # A fork has the handler too, and gets the default back before it can take a signal.
    forking = threading.local()

    def before() -> None:
        forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)

    def in_parent() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, forking.mask)

    def in_child() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        in_parent()

    os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)


def _nothing(*_: object) -> None:
    pass


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
