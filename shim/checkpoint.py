"""Checkpoints of a training: all that the next epoch depends on, one file a contestant, written after each epoch.

A checkpoint is an .npz file beside the run file, without pickles. A crash or a full disk leaves the one before.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from shim import files

RECORD = "record"  # the array that holds the record of the epoch, as JSON


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read."""


def path(run: Path, label: str) -> Path:
    """Return the checkpoint of a contestant of a run file."""
    return run.with_name(f"{run.stem}.{re.sub(r'[^a-z0-9.]+', '-', label)}.checkpoint.npz")


def save(file: Path, state: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Write a trainer's state and the record of its last epoch. Raises ``OSError``, the file before left as it was."""
    with files.replacing(file) as opened:
        np.savez(opened, allow_pickle=False, **state, **{RECORD: np.array(json.dumps(record, default=str))})


def load(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the state and the record of a checkpoint. Raises :class:`CheckpointError` where it is damaged."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        record: dict[str, Any] = json.loads(str(arrays.pop(RECORD)))
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            raise ValueError("it holds no record of an epoch")
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(f"cannot read {file}: {error or type(error).__name__}") from error
    return arrays, record
