"""The file ``runners.toml``: what runs, how much of it, what guards it, and who is told.

    from runners.config import load

    config = load("runners.toml")
    config.runners["embedder"].memory      # bytes

`load` refuses what it does not know, and says where, and what was probably meant. ``docs/config.md`` has a complete
example; it is `EXAMPLE` here.
"""

from runners.config.engines import EmbeddingSection, FunctionSection, LlamaSection, RestartSection, RunnerSection
from runners.config.guards import BreakerSection, LimiterSection, RetrySection, TimeoutSection
from runners.config.reading import EXAMPLE, Config, ConfigError, load, parse
from runners.config.sections import (
    AlertsSection,
    EndpointSection,
    FleetSection,
    LoadTestSection,
    MachineSection,
    RedisSection,
    ServiceSection,
    TelemetrySection,
    TierSection,
)
from runners.config.values import Size

__all__ = [
    "EXAMPLE",
    "AlertsSection",
    "BreakerSection",
    "Config",
    "ConfigError",
    "EmbeddingSection",
    "EndpointSection",
    "FleetSection",
    "FunctionSection",
    "LimiterSection",
    "LlamaSection",
    "LoadTestSection",
    "MachineSection",
    "RedisSection",
    "RestartSection",
    "RetrySection",
    "RunnerSection",
    "ServiceSection",
    "Size",
    "TelemetrySection",
    "TierSection",
    "TimeoutSection",
    "load",
    "parse",
]
