"""What runs in a process of its own, without a runner: the raw calls, and the `Llama` object of llama-cpp-python.

    python -m benchmarks.generate_sides.native '{"what": "bare", ...}'

The last line of its output is JSON.
"""

from __future__ import annotations

import asyncio
import functools
import json
import sys
import time
from typing import Any

import numpy as np

from benchmarks.generate_sides.load import Messages

#: Alternatives that are kept of each token.
_KEPT = 32
#: Likeliest tokens whose logits' distances are looked at for rounding.
_COMPARED = 4
_SEQUENCES, _STEPS = 16, 32
#: Stands for any token that ends a text.
END = -1


async def run_apart(what: str, chats: list[Messages], *, path: str, most: int, threads: int, context: int) -> Any:
    """What `bare`, `llama`, `greedy` (`llama`, with alternatives) or `rounding` returns, run in another process."""
    spec = {"what": what, "chats": chats, "path": path, "most": most, "threads": threads, "context": context}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        __name__,
        json.dumps(spec),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 300)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"the {what} side ended with {process.returncode}: {err.decode(errors='replace')[-1000:]}")
    return json.loads(out.splitlines()[-1])


def _open(spec: dict[str, Any], sequences: int) -> tuple[Any, list[list[int]]]:
    """A context on the model, made as the runner makes it, and the chats' tokens."""
    from runners.protocol.generation import Chat, Sampling
    from runners.worker.engines.llama.logs import Log
    from runners.worker.engines.llama.model import Model
    from runners.worker.engines.llama.native import Context
    from runners.worker.engines.llama.prompts import Prompts

    log = Log()
    model = Model(spec["path"], gpu_layers=0, repack=True, mlock=False, log=log)
    context = Context(
        model,
        cells=spec["context"],
        sequences=sequences,
        batch=512,
        threads=spec["threads"],
        type_k="f16",
        type_v="f16",
        flash_attention=True,
        unified=True,
        log=log,
    )
    prompts = Prompts(model, None)
    return context, [prompts.prompt(Chat(messages, Sampling(), None, None, {})) for messages in spec["chats"]]


def rounding(spec: dict[str, Any]) -> float:
    """How much the distance between the logits of two likely tokens changes, at most, when the library computes prompts
    together instead of each alone: it adds up in another order. The same tokens follow the prompts both times.
    """
    count = min(_SEQUENCES, len(spec["chats"]))
    context, todo = _open(spec, count)
    likely: list[Any] = []
    logits: list[Any] = []
    worst = 0.0
    for together in (False, True):
        rows = _prompt(context, todo[:count], together=together)
        for step in range(_STEPS):
            if not together:
                likely.append(np.argpartition(rows, -_COMPARED, axis=1)[:, -_COMPARED:])
                logits.append(np.take_along_axis(rows, likely[step], axis=1))
            else:
                change = np.take_along_axis(rows, likely[step], axis=1) - logits[step]
                worst = max(worst, float(np.ptp(change, axis=1).max()))
            best = np.take_along_axis(likely[step], logits[step].argmax(axis=1)[:, None], axis=1)[:, 0]
            context.decode([(i, len(todo[i]) + step, (int(best[i]),), True) for i in range(count)])
            rows = context.logits(count).copy()
        for seq in range(count):
            context.cache.remove(seq)
    return worst


def _prompt(context: Any, todo: list[list[int]], *, together: bool) -> Any:
    """Compute the prompts, as many whole ones at once as a batch holds, or each alone; the logits after each."""
    rows: list[Any] = []
    while len(rows) < len(todo):
        batch: list[Any] = []
        size = 0
        for seq in range(len(rows), len(todo)):
            if batch and (not together or size + len(todo[seq]) > context.batch):
                break
            batch.append((seq, 0, todo[seq], True))
            size += len(todo[seq])
        context.decode(batch)
        rows += list(context.logits(len(batch)).copy())
    return np.array(rows)


def bare(spec: dict[str, Any]) -> dict[str, float]:
    """A loop over `llama_decode`, a sequence for each chat, the largest logit taken: seconds of the prompts, and of
    the steps after them. The end of a text is passed over, so that all sequences go on to the end.
    """
    count, most = len(spec["chats"]), spec["most"]
    context, todo = _open(spec, count)
    for _ in range(4):  # warm
        context.decode([(0, 0, todo[0][:64], True)])
        context.cache.remove(0)

    began = time.perf_counter()
    tokens = _prompt(context, todo, together=True).argmax(axis=1)
    prompted = time.perf_counter()
    positions = [len(prompt) for prompt in todo]
    for step in range(most - 1):
        context.decode([(i, positions[i] + step, (int(tokens[i]),), True) for i in range(count)])
        tokens = context.logits(count).argmax(axis=1)
    ended = time.perf_counter()
    return {
        "decode": count * (most - 1) / (ended - prompted),
        "aggregate": count * most / (ended - began),
        "first": prompted - began,
        "prompt_tokens": float(sum(map(len, todo))),
    }


def llama(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The `Llama` object, one chat after the other, greedy: of each the tokens, the likeliest alternatives with their
    logits, and the rate of tokens after the first.
    """
    from llama_cpp import Llama
    from llama_cpp import llama_cpp as lib
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    model = Llama(
        spec["path"],
        n_ctx=spec["context"],
        n_threads=spec["threads"],
        n_threads_batch=spec["threads"],
        flash_attn=True,
        verbose=False,
    )
    vocab = lib.llama_model_get_vocab(model.model)
    size = model.n_vocab()

    def text(token: int) -> str:
        return str(model._model.token_get_text(token)) if token >= 0 else ""

    def named(token: int) -> int:
        return END if lib.llama_vocab_is_eog(vocab, token) else token

    formatter = Jinja2ChatFormatter(
        model.metadata["tokenizer.chat_template"], text(model.token_eos()), text(model.token_bos())
    )
    keep = spec.get("what") == "greedy"
    results = []
    for messages in spec["chats"]:
        prompt: Any = formatter(messages=messages)
        tokens = model.tokenize(prompt.prompt.encode(), add_bos=not prompt.added_special, special=True)
        ids: list[int] = []
        best: list[list[tuple[int, float]]] = []
        times: list[float] = []
        for token in model.generate(tokens, temp=0.0):
            times.append(time.perf_counter())
            ids.append(named(token))
            if keep:
                row = np.ctypeslib.as_array(lib.llama_get_logits_ith(model.ctx, -1), (size,))
                top = np.argpartition(row, -_KEPT)[-_KEPT:]
                best.append([(named(int(i)), float(row[i])) for i in top[np.argsort(row[top])[::-1]]])
            if ids[-1] == END or len(ids) == spec["most"]:
                break
        rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        results.append({"ids": ids, "best": best, "rate": rate, "prompt_tokens": len(tokens)})
    return results


@functools.cache
def _loaded(path: str, context: int, threads: int) -> Any:
    from llama_cpp import Llama

    return Llama(path, n_ctx=context, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False)


def llama_alone(path: str, context: int, threads: int, messages: Messages, most: int) -> float:
    """Tokens a second of one chat with a `Llama` object that stays loaded, after its first token."""
    times = [
        time.perf_counter()
        for _ in _loaded(path, context, threads).create_chat_completion(
            messages=messages, max_tokens=most, temperature=0.0, stream=True
        )
    ][1:]  # the first piece is the role
    return (len(times) - 1) / (times[-1] - times[0])


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps({"bare": bare, "llama": llama, "greedy": llama, "rounding": rounding}[given["what"]](given)))
