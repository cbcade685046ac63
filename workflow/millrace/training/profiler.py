"""A trace of a few steps, for chrome://tracing or https://ui.perfetto.dev."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from millrace.training.config import ProfileConfig


class StepProfiler:
    """Traces some optimiser steps into ``profile_step_<start>.json.gz`` in the run's store.

    Nothing is traced without ``config``, or if its ``start`` lies before ``step``, the steps done when the
    session begins.
    """

    def __init__(self, config: ProfileConfig | None, directory: Path, step: int) -> None:
        self._config, self._directory = config, directory
        self._profile: profile | None = None
        self.on_step(step)

    def on_step(self, step: int) -> None:
        """Begin or end the trace, with ``step`` steps done."""
        if self._config is None:
            return
        if self._profile is not None and step >= self._config.start + self._config.steps:
            self.close()
        elif self._profile is None and step == self._config.start:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._profile = profile(activities=activities, profile_memory=True)
            self._profile.start()

    def close(self) -> None:
        """Write the trace."""
        if self._profile is None or self._config is None:
            return
        self._profile.stop()
        partial = self._directory / "tmp_profile.json.gz"  # torch compresses files with this suffix
        self._profile.export_chrome_trace(str(partial))
        partial.replace(self._directory / f"profile_step_{self._config.start}.json.gz")
        self._profile = None


def traces(directory: Path) -> list[str]:
    """Paths of the traces of a run."""
    return [str(path) for path in sorted(directory.glob("profile_step_*.json.gz"))]
