"""``[runners.NAME]``: the runners of the file. Their keys are the keywords of the runners' constructors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec

from runners.config.guards import Section
from runners.config.values import Size, SizeOrNone, seconds, whole
from runners.spec import Resources
from runners.supervision.autoscale import Autoscale, as_autoscale
from runners.supervision.environment import as_inherited
from runners.supervision.restart import RestartPolicy

_HARD_FACTOR = 1.5


class RestartSection(Section, frozen=True, kw_only=True):
    """When crashed workers are started again; see `runners.supervision.restart.RestartPolicy`."""

    intensity: int = 5
    period: float = 60
    backoff: float = 0.1
    max_backoff: float = 5
    probe_interval: float = 5


class RunnerSection(Section, frozen=True, kw_only=True):
    """``[runners.NAME]``: what all engines share. The keys are the keywords of the runners' constructors.

    ``workers`` is a number, ``[minimum, maximum]``, or a table of `Autoscale`.
    """

    engine: ClassVar[str] = ""
    paths: ClassVar[tuple[str, ...]] = ()

    memory: Size | None = None
    memory_hard: Size | None = None
    max_age: float | None = None
    max_requests: int | None = None
    workers: int | tuple[int, int] | Autoscale = 1
    lazy: bool = False
    idle_unload: float | None = None
    queue: int = 1024
    queue_bytes: Size = Size(1 << 30)
    timeout: float = 300
    heartbeat: float | None = 60
    start_timeout: float = 120
    drain_timeout: float | None = None
    grace: float = 10
    environment: dict[str, str] = msgspec.field(default_factory=dict)
    inherit_environment: bool | list[str] = msgspec.field(default_factory=list)
    restart: RestartSection | None = None
    resources: Resources | None = None
    publish_status: bool | None = None

    def __post_init__(self) -> None:
        """Check what the constructors check."""
        as_autoscale(self.workers)
        as_inherited(self.inherit_environment)
        whole("queue", self.queue, 0)
        if self.queue == 0 and (self.lazy or self.idle_unload is not None or self.size.minimum == 0):
            msg = "queue = 0 does not go with lazy, idle_unload or a minimum of 0: a request waits there for the load"
            raise ValueError(msg)
        whole("max_requests", self.max_requests, 1)
        for name in ("timeout", "heartbeat", "start_timeout", "drain_timeout", "max_age", "idle_unload"):
            seconds(name, getattr(self, name))
        seconds("grace", self.grace, zero=True)
        if self.memory is not None and self.memory_hard is not None and self.memory_hard <= self.memory:
            msg = "memory_hard must be above memory: a worker is replaced at one and killed at the other"
            raise ValueError(msg)

    @property
    def size(self) -> Autoscale:
        """How many workers."""
        return as_autoscale(self.workers)

    @property
    def hard(self) -> int | None:
        """Bytes at which a worker is killed: `memory_hard`, else one and a half times `memory`."""
        if self.memory_hard is not None:
            return int(self.memory_hard)
        return None if self.memory is None else int(self.memory * _HARD_FACTOR)

    @property
    def worker_threads(self) -> int | None:
        """Threads of a worker, if the file says."""
        told: int | None = getattr(self, "threads", None)
        return told if told is not None or self.resources is None else self.resources.threads

    def within(self, folder: Path) -> Self:
        """The same with its paths taken from a folder. One that begins with ``/`` stays as it is."""
        given = {name: value for name in self.paths if (value := getattr(self, name)) is not None}
        return msgspec.structs.replace(self, **{name: str(folder / value) for name, value in given.items()})

    def keywords(self) -> dict[str, Any]:
        """What the constructor of the runner takes."""
        given = self.given()
        if self.restart is not None:
            given["restart"] = RestartPolicy(**self.restart.given())
        return given


class EmbeddingSection(RunnerSection, frozen=True, kw_only=True):
    """``engine = "embedding"``: an `EmbeddingRunner`."""

    engine: ClassVar[str] = "embedding"
    paths: ClassVar[tuple[str, ...]] = ("path", "tokenizer")

    path: str
    tokenizer: str | None = None
    max_tokens: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    threads: int | None = None
    lanes: int | None = None
    token_budget: int | None = None
    providers: list[str] | None = None


class LlamaSection(RunnerSection, frozen=True, kw_only=True):
    """``engine = "llama"``: a `LlamaRunner`."""

    engine: ClassVar[str] = "llama"
    paths: ClassVar[tuple[str, ...]] = ("path",)

    path: str
    slots: int = 16
    context: int = 4096
    kv_type: str = "f16"
    batch: int | None = None
    parked: int | None = None
    prefix_memory: SizeOrNone | None = None
    threads: int | None = None
    gpu_layers: int = 0
    flash_attention: bool = True
    repack: bool | None = None
    mlock: bool = False
    template: str | None = None


class FunctionSection(RunnerSection, frozen=True, kw_only=True):
    """``engine = "function"``: a `FunctionRunner`."""

    engine: ClassVar[str] = "function"

    function: str
    idempotent: bool = False
    concurrency: int | None = None
    initializer: str | None = None
    window: int = 32
    timeout: float = 60
    heartbeat: float | None = None
    start_timeout: float = 60


ENGINES: dict[str, type[RunnerSection]] = {
    section.engine: section for section in (EmbeddingSection, LlamaSection, FunctionSection)
}
