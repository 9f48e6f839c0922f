"""Engines: what a worker can run. One file each, behind the interface in `base`."""
