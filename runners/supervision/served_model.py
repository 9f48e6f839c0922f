"""The model that all workers of a runner serve: that of the first worker, until `recycle()` takes another one."""

from __future__ import annotations

from collections.abc import Mapping

from guardrails.core import events
from runners.errors import ModelChanged
from runners.supervision.events import ModelFileChanged


class ServedModel:
    """Compares the files that each new worker has loaded with those of the ones before.

    Args:
        name: the runner's.

    Attributes:
        generation: how often the model was changed on purpose.
        changed: the file that a worker was refused for; None once the model is taken, or the file is as before.
    """

    def __init__(self, name: str) -> None:
        self.generation = 0
        self.changed: str | None = None
        self._name = name
        self._files: dict[str, str] | None = None
        self._renewing = False

    def renew(self) -> None:
        """The next worker may have loaded other files, and then all that come after it must have those."""
        self._renewing = True

    def keep(self) -> None:
        """No longer."""
        self._renewing = False

    def forget(self) -> None:
        """There is no worker: whatever the next one loads is the model."""
        self._files = None
        self.generation += 1
        self.changed = None

    def admit(self, files: Mapping[str, str]) -> int:
        """A worker has loaded these; returns the model's generation.

        Raises:
            ModelChanged: they are not those of the other workers.
        """
        path = self._difference(files)
        if path is not None and not self._renewing:
            self._refused(path)
            raise ModelChanged(
                f"{self._name}: {path} is not the file that the other workers have loaded, and all workers of a runner "
                "serve the same model; call recycle() to take the new file for all of them, or put the old one back",
                path=path,
            )
        if path is not None:
            self.generation += 1
            self._renewing = False
        self._files = dict(files)
        self.changed = None
        return self.generation

    def _difference(self, files: Mapping[str, str]) -> str | None:
        """The first file that is not as it was."""
        if self._files is None:
            return None
        for path in {**self._files, **files}:
            if files.get(path) != self._files.get(path):
                return path
        return None

    def _refused(self, path: str) -> None:
        if self.changed != path and events.sinks:
            events.emit(ModelFileChanged(self._name, path))
        self.changed = path


__all__ = ["ServedModel"]
