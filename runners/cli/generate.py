"""``runners complete`` and ``runners chat``: a GGUF model in a supervised worker, from the command line."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

from guardrails.core.errors import GuardrailError

if TYPE_CHECKING:
    from runners.cli.session import Session
    from runners.llama import LlamaRunner

_COMPLETE = """\
Goes on with a text, and prints what comes, as it comes.

examples:
  runners complete smollm2.gguf "The three primary colours are" --max-tokens 40
  runners complete smollm2.gguf --temperature 0 --stop . "The capital of France is"
  cat report.txt | runners complete smollm2.gguf --context 8192 --memory 1GiB
  runners complete smollm2.gguf "One, two," --seed 7 --json      the text and its numbers as JSON

The prompt is taken as it is. For an answer to a question: runners chat.
"""
_CHAT = """\
Talks with a model through its own chat template. The conversation is kept until /reset or the end.

  Ctrl-C       stops the answer; what was said so far stays
  /reset       begins a new conversation
  /exit        leaves; so does Ctrl-D

examples:
  runners chat smollm2.gguf
  runners chat smollm2.gguf --system "You answer in one sentence." --temperature 0.2
  printf '%s\\n' "Name a fruit." "And a colour?" | runners chat smollm2.gguf --seed 1

Where the input is no terminal, each line of it is a message, and each answer ends with an empty line.
"""
_INTERRUPTED = 128 + 2


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    complete = commands.add_parser(
        "complete",
        help="go on with a text, with a GGUF model",
        description=_COMPLETE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    complete.add_argument("model", metavar="MODEL.gguf")
    complete.add_argument("prompt", nargs="?", metavar="PROMPT", help="the text; - or none: standard input")
    complete.add_argument("--json", action="store_true", help="print one JSON object at the end, and nothing else")
    chat = commands.add_parser(
        "chat",
        help="talk with a GGUF model in the terminal",
        description=_CHAT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument("model", metavar="MODEL.gguf")
    chat.add_argument("--system", metavar="TEXT", help="a system message: what the model is to be like")
    for command in (complete, chat):
        _add_common(command)


def _add_common(command: argparse.ArgumentParser) -> None:
    text = command.add_argument_group("the text")
    text.add_argument("--max-tokens", type=int, metavar="N", help="tokens to generate, at most (512, or what fits)")
    text.add_argument("--temperature", type=float, metavar="T", help="0: always the likeliest token (0.8)")
    text.add_argument("--top-p", type=float, metavar="P", help="of the likeliest, that much together (0.95)")
    text.add_argument("--seed", type=int, metavar="N", help="the same number, the same text")
    text.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; may come again"
    )
    model = command.add_argument_group("the model")
    model.add_argument("--memory", metavar="SIZE", help="memory budget of the worker, such as 1GiB")
    model.add_argument("--context", type=int, default=4096, metavar="N", help="tokens of prompt and answer (4096)")
    model.add_argument("--slots", type=int, default=1, metavar="N", help="requests at once; here one is enough (1)")
    model.add_argument("--kv-type", default="f16", metavar="TYPE", help="of the KV cache; q8_0 is half as large (f16)")
    model.add_argument("--threads", type=int, metavar="N", help="threads of the worker (all cores)")
    model.add_argument("--gpu-layers", type=int, default=0, metavar="N", help="layers on a GPU; -1: all (0)")
    model.add_argument("--verbose", action="store_true", help="show the log of the runner and of llama.cpp")


def run(options: argparse.Namespace) -> int:
    """Run either command; the exit status. Errors are one line on standard error."""
    from runners.cli.chat import talk

    _logs(verbose=options.verbose)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    act: Callable[[argparse.Namespace], int] = _complete if options.command == "complete" else talk
    try:
        return act(options)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return _INTERRUPTED
    except (GuardrailError, ValueError, OSError) as error:
        print(f"runners {options.command}: {one_line(error)}", file=sys.stderr)
        return 1


def make_runner(options: argparse.Namespace) -> LlamaRunner:
    """The runner that the options describe; not started."""
    from runners.llama import LlamaRunner

    return LlamaRunner(
        options.model,
        memory=options.memory,
        context=options.context,
        slots=options.slots,
        kv_type=options.kv_type,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
    )


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of the text."""
    names = ("max_tokens", "temperature", "top_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return {**given, "stop": tuple(options.stop)} if options.stop else given


def write(text: str) -> None:
    """Print a piece of a model's text. On a terminal nothing in it moves the cursor or does worse."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def harmless(text: str) -> str:
    """The text with its control characters replaced, but for line ends and tabs."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(error: BaseException) -> str:
    """The error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _complete(options: argparse.Namespace) -> int:
    from runners.cli.session import Session

    prompt = options.prompt
    if prompt is None or prompt == "-":
        if sys.stdin.isatty():
            print("Type the text; Ctrl-D ends it.", file=sys.stderr)
        prompt = sys.stdin.read()
    with Session(make_runner(options)) as session:
        return _print_json(session, prompt, options) if options.json else _print(session, prompt, options)


def _print(session: Session, prompt: str, options: argparse.Namespace) -> int:
    last = "\n"
    try:
        with closing(session.read(session.runner.stream_complete(prompt, **sampling(options)))) as pieces:
            for text in pieces:
                last = text or last  # first, for Ctrl-C may come between any two lines
                write(text)
    finally:
        if not last.endswith("\n"):
            write("\n")
    return 0


def _print_json(session: Session, prompt: str, options: argparse.Namespace) -> int:
    import json

    began = time.perf_counter()
    answer = session.wait(session.runner.complete(prompt, **sampling(options)))
    told = {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "seconds": round(time.perf_counter() - began, 3),
    }
    print(json.dumps(told, ensure_ascii=False, indent=2))
    return 0


def _logs(*, verbose: bool) -> None:
    if verbose:
        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("asyncio").setLevel(logging.INFO)
    else:
        logging.getLogger("runners").setLevel(logging.CRITICAL)  # what matters is said as an error
