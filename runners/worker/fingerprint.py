"""Fingerprints of the files that a model is loaded from, by which the parent sees that all workers serve the same one.

A file of up to 64 MiB is read whole: the same content is the same file, wherever it was copied from. A larger one goes
by its inode, size and time of change, and by samples of its content, which notice a rewrite that has put the time back.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

_WHOLE = 64 * 2**20
_SAMPLE = 64 * 1024
_SAMPLES = 64


def identity(files: Iterable[Path]) -> list[tuple[int, ...]]:
    """What changes when one of them is replaced or written to, without reading them. A missing one has nothing."""
    return [_identity(file) for file in files]


def fingerprints(files: Iterable[Path]) -> dict[str, str]:
    """The fingerprint of each by its path. Links are followed."""
    return {str(file): _fingerprint(file) for file in files}


def _identity(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _fingerprint(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb", buffering=0) as opened:
        found = os.fstat(opened.fileno())
        size = found.st_size
        if size <= _WHOLE:
            while data := opened.read(2**20):
                digest.update(data)
            return f"{size}:{digest.hexdigest()}"
        for number in range(_SAMPLES):
            opened.seek((size - _SAMPLE) * number // (_SAMPLES - 1))
            digest.update(opened.read(_SAMPLE))
    return f"{size}:{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}:{digest.hexdigest()}"
