"""``runners chat``: a conversation in the terminal, or one message a line where there is none."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator

from guardrails.core.errors import GuardrailError
from runners.cli.generate import make_runner, one_line, sampling, write
from runners.cli.session import Session
from runners.errors import PromptTooLong

_HELP = "Ctrl-C stops an answer, /reset begins a new conversation, /exit or Ctrl-D leaves."


def talk(options: argparse.Namespace) -> int:
    """Talk until the end of the input; the exit status."""
    alone = sys.stdin.isatty()
    beginning = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages = list(beginning)
    with Session(make_runner(options)) as session:
        if alone:
            _hint(f"{session.runner.name}. {_HELP}")
        for line in _typed() if alone else _piped():
            if line in ("/exit", "/quit"):
                break
            if line == "/reset":
                messages = list(beginning)
                if alone:
                    _hint("A new conversation.")
            elif line == "/help":
                _hint(_HELP)
            else:
                try:
                    _answer(session, messages, line, options)
                except GuardrailError as error:
                    if not alone:
                        raise
                    _hint(_mend(error))
                if not alone:
                    write("\n")
    return 0


def _answer(session: Session, messages: list[dict[str, str]], text: str, options: argparse.Namespace) -> None:
    """Print the answer, and keep both sides of it. One that failed leaves the conversation as it was."""
    asked = [*messages, {"role": "user", "content": text}]
    pieces = session.runner.stream_chat(asked, **sampling(options))
    interrupted = False
    try:
        with contextlib.closing(session.read(pieces)) as read:
            for piece in read:
                write(piece)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        interrupted = True
    finally:
        if not pieces.text.endswith("\n"):
            write("\n")
    if interrupted:
        _hint("Stopped.")
    messages[:] = [*asked, {"role": "assistant", "content": pieces.text}]


def _mend(error: GuardrailError) -> str:
    if isinstance(error, PromptTooLong):
        return f"{one_line(error)} /reset begins a new conversation; --context gives more room."
    return f"{one_line(error)} The message was not answered; send it again, or /exit."


def _typed() -> Iterator[str]:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its editing and its history
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _hint("Ctrl-D or /exit leaves.")
            continue
        if line:
            yield line


def _piped() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


def _hint(text: str) -> None:
    live = sys.stderr.isatty()
    print(f"\x1b[2m{text}\x1b[0m" if live else text, file=sys.stderr, flush=True)
