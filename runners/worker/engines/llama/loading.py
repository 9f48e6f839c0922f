"""From the options to a model and its context, or an error that says what would have to be different."""

from __future__ import annotations

import glob
import mmap
import os
import re
from pathlib import Path
from typing import Any

import msgspec

from runners.spec import budget_for, largest_load
from runners.worker.engines.base import EngineError
from runners.worker.engines.llama.cache import KvCache
from runners.worker.engines.llama.logs import Log
from runners.worker.engines.llama.model import KV_TYPES, Model
from runners.worker.engines.llama.native import Context

_MIB = 2**20
#: What is held beside the KV cache, at least: the interpreter, the library, its buffers.
_BESIDE = 96 * _MIB
#: Buffers of one step, which come after the model is loaded: 5 MiB for a vocabulary of 49,152 tokens.
_BUFFERS = 16 * _MIB
#: What the library writes for a cell beside its keys and values: its position and its sequence.
_PER_CELL = 32
#: From 64 tokens on llama.cpp's flash attention for CPUs works in tiles, and rounds in another way.
_CPU_BATCH, _GPU_BATCH = 63, 512
#: Of ids.
_MOST_SEQUENCES = 256 - KvCache.OWN
#: The end of the name of a part of a split model.
_SPLIT = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
#: Bytes of 32 elements; smaller ones are quantised.
_HALVES = 64


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The engine's options, as they come from the parent.

    Attributes:
        path: the GGUF file; of a split model the first part.
        slots: requests that generate at the same time.
        context: tokens that the KV cache holds, of all requests together.
        batch: tokens of one step, at most; None: see `LlamaRunner`.
        piece: prompt tokens of one step while others generate.
        parked: ended sequences whose prompts stay for others, beside the slots.
        prefix_memory: bytes that ended sequences may take outside the KV cache; None: half of what the cache takes.
        threads: of the computation; None: this process's cores.
        gpu_layers: layers that a GPU computes; -1 is all.
        kv_type: type of the KV cache's cells.
        flash_attention: whether to use it.
        repack: whether weights are copied into the layout that this CPU computes fastest with; copies are not shared
            between workers.
        mlock: whether the weights are kept from being paged out.
        template: Jinja, instead of the file's chat template.
        memory: the worker's soft budget in bytes, if it has one.
    """

    path: str
    slots: int = 16
    context: int = 4096
    batch: int | None = None
    piece: int = 128
    parked: int | None = None
    prefix_memory: int | None = None
    threads: int | None = None
    gpu_layers: int = 0
    kv_type: str = "f16"
    flash_attention: bool = True
    repack: bool = True
    mlock: bool = False
    template: str | None = None
    memory: int | None = None

    @property
    def sequences(self) -> int:
        """Sequence ids in all."""
        return min(_MOST_SEQUENCES, self.slots + self.kept)

    @property
    def used_threads(self) -> int:
        """Threads of the computation."""
        if self.threads is not None:
            return self.threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)

    @property
    def step(self) -> int:
        """Tokens of one step, at most."""
        if self.batch is not None:
            return self.batch
        return max(self.slots, _CPU_BATCH if self.gpu_layers == 0 else _GPU_BATCH)

    @property
    def kept(self) -> int:
        """How many sequences may be parked."""
        return max(1, self.slots // 4) if self.parked is None else self.parked


def parse_options(options: dict[str, Any]) -> Options:
    """Check.

    Raises:
        EngineError: ``bad_option``, with its name.
    """
    try:
        parsed = msgspec.convert(options, Options)
    except msgspec.ValidationError as error:
        raise EngineError("bad_option", str(error)) from error
    for name, value, least, most in (
        ("slots", parsed.slots, 1, _MOST_SEQUENCES),
        ("context", parsed.context, 16, 2**24),
        ("batch", parsed.step, 1, 2**16),
        ("piece", parsed.piece, 1, 2**16),
        ("parked", parsed.kept, 0, _MOST_SEQUENCES),
        ("prefix_memory", parsed.prefix_memory or 0, 0, 2**50),
        ("gpu_layers", parsed.gpu_layers, -1, 10_000),
    ):
        if not least <= value <= most:
            raise EngineError("bad_option", f"{name} takes {least:,} to {most:,}, not {value:,}")
    if parsed.kv_type not in KV_TYPES:
        raise EngineError("bad_option", f"kv_type takes one of {', '.join(KV_TYPES)}, not {parsed.kv_type!r}")
    if KV_TYPES[parsed.kv_type][1] < _HALVES and not parsed.flash_attention:
        raise EngineError("bad_option", f"kv_type={parsed.kv_type!r} needs flash_attention=True")
    if parsed.context < parsed.slots:
        raise EngineError(
            "bad_option", f"context={parsed.context} is less than slots={parsed.slots}: each needs a token"
        )
    if parsed.step < parsed.slots:
        raise EngineError("bad_option", f"batch={parsed.batch} is less than slots={parsed.slots}: each needs a token")
    return parsed


def parts_of(path: Path) -> list[Path]:
    """The files of a model: several, if it was split."""
    split = _SPLIT.search(path.name)
    if split is None:
        return [path]
    return sorted(path.parent.glob(f"{glob.escape(path.name[: split.start()])}-?????-of-{split[1]}.gguf"))


def load(options: Options, log: Log) -> tuple[Model, Context]:
    """The model and its context.

    Raises:
        EngineError: ``model_not_found``, ``model_invalid``, ``model_unsupported``, ``budget_too_small``,
            ``bad_option``, ``memory``.
    """
    model = Model(options.path, gpu_layers=options.gpu_layers, repack=options.repack, mlock=options.mlock, log=log)
    if not model.generates:
        raise EngineError(
            "model_unsupported", f"{options.path!r} ({model.description}) does not generate text; it is an encoder"
        )
    check_budget(options, model)
    context = Context(
        model,
        cells=options.context,
        sequences=options.sequences,
        batch=min(options.step, options.context),
        threads=options.used_threads,
        type_k=options.kv_type,
        type_v=options.kv_type,
        flash_attention=options.flash_attention,
        unified=True,
        log=log,
        movable=movable_cells(options, model),
    )
    return model, context


def check_budget(options: Options, model: Model) -> None:
    """Refuse, before it is made, a KV cache that the budget cannot hold.

    The budget and the context that the error names are good for the parent's check of the loaded worker as well.
    """
    if options.memory is None:
        return
    kv = model.kv_bytes(options.context, options.kv_type, options.kv_type)
    kept = options.prefix_memory or 0
    if kv + kept + _BESIDE > options.memory:
        loaded = (private() or _BESIDE) + _BUFFERS
        needed = max(kv + kept + _BESIDE, budget_for(kv + loaded))
        cell = max(1, kv // options.context)
        fits = max(0, min(options.memory - _BESIDE - kept, largest_load(options.memory) - loaded)) // cell
        beside = f", and prefix_memory={kept // _MIB:,}MiB" if kept else ""
        raise EngineError(
            "budget_too_small",
            f"memory={options.memory // _MIB}MiB cannot hold a KV cache of context={options.context:,} tokens in "
            f"{options.kv_type}, which is {kv // _MIB:,} MiB{beside}: it needs "
            f"memory={-(-needed // _MIB)}MiB or more"
            + (f", or context={fits} or less" if fits >= options.slots else "")
            + ("" if options.kv_type != "f16" else ", or kv_type='q8_0', which halves it"),
            needed=needed,
        )


def stored_tokens(options: Options, model: Model) -> int:
    """Tokens of ended sequences that may be kept outside the KV cache."""
    kv = model.kv_bytes(options.context, options.kv_type, options.kv_type)
    if kv == 0:
        return 0
    kept = options.prefix_memory
    if kept is None:
        kept = kv // 2
        if options.memory is not None:  # a default must not be what makes a budget too small
            kept = min(kept, max(0, options.memory - kv - _BESIDE) // 2)
    return kept // (kv // options.context + _PER_CELL)


def private() -> int:
    """Bytes that this process holds and shares with nobody; 0 where the system does not say."""
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0
    return (int(resident) - int(shared)) * mmap.PAGESIZE


def movable_cells(options: Options, model: Model) -> int:
    """Cells that may be copied for a moment, to keep each sequence's in order; 0 where that would make no difference.
    Asked when the model is loaded and its cache is not there yet.

    Where attention is not llama.cpp's flash attention for CPUs, results depend on the place of a cell, not only on the
    order. And of a window that slides the library reuses the cells as it likes.
    """
    kv = model.kv_bytes(options.context, options.kv_type, options.kv_type)
    if kv == 0 or not options.flash_attention or options.gpu_layers != 0 or model.slides:
        return 0
    movable = options.context // 2
    if options.memory is not None:
        cell = kv // options.context
        beside = max(_BESIDE, private())  # with the weights that were copied to compute faster
        free = options.memory - kv - beside - stored_tokens(options, model) * (cell + _PER_CELL)
        movable = min(movable, max(0, free) // (cell + _PER_CELL))
    return movable
