"""The documents that a plan is made from, each with what the plan records of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from collab_plugin.formats.file_hash import file_sha256
from collab_plugin.repair.samples import BlockSamples, read_samples
from collab_plugin.stats.sensitivity import Sensitivity
from collab_plugin.stats.sensitivity_file import SENSITIVITY_FILE
from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import as_stored, read_stats, sha256_when_written


@dataclass(frozen=True)
class StatsSource:
    """The stats with where they came from: ``path`` None for stats in memory. ``sha256``: of the file.
    ``notes``: what `of_model` did to them."""

    stats: Stats
    path: Path | None
    sha256: str
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> StatsSource:
        """Read a stats file, or an imatrix GGUF of anyone."""
        return cls(read_stats(path), path, file_sha256(path))

    @classmethod
    def of(cls, stats: Stats) -> StatsSource:
        """Stats in memory, as they would be read after `write_stats`."""
        stats = as_stored(stats)
        return cls(stats, None, sha256_when_written(stats))

    @property
    def label(self) -> str:
        """What to call them in a message."""
        return "`stats`" if self.path is None else str(self.path)

    @property
    def file(self) -> str:
        """The name that a plan records: "" for stats in memory."""
        return "" if self.path is None else self.path.name


@dataclass(frozen=True)
class SamplesSource:
    """The samples file with the hash that a plan records."""

    samples: BlockSamples
    sha256: str

    @classmethod
    def read(cls, path: Path) -> SamplesSource:
        """Open a samples file."""
        return cls(read_samples(path), file_sha256(path))


@dataclass(frozen=True)
class SensitivitySource:
    """The sensitivity document with where it came from: ``path`` None for one in memory. ``sha256``: of the file."""

    sensitivity: Sensitivity
    path: Path | None
    sha256: str

    @classmethod
    def read(cls, path: Path) -> SensitivitySource:
        """Read a sensitivity document."""
        return cls(SENSITIVITY_FILE.read(path), path, file_sha256(path))

    @classmethod
    def of(cls, sensitivity: Sensitivity) -> SensitivitySource:
        """A document in memory, as it would be read after it was written."""
        text = SENSITIVITY_FILE.text(sensitivity)
        return cls(sensitivity, None, hashlib.sha256(text.encode()).hexdigest())

    @property
    def label(self) -> str:
        """What to call it in a message."""
        return "`sensitivity`" if self.path is None else str(self.path)

    @property
    def file(self) -> str:
        """The name that a plan records: "" for a document in memory."""
        return "" if self.path is None else self.path.name
