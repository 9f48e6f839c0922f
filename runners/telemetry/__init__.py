"""What the events of runners mean to the sinks of `guardrails.telemetry`, which do not know runners."""
