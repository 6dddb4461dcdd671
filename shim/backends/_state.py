"""The state of a trainer as flat, named arrays, which ``Trainer.state`` returns and ``Trainer.restore`` takes."""

from __future__ import annotations

import numpy as np


def pack(weights, slots, step, **others):
    """Return one dict of arrays: ``weight/NAME``, the optimizer's ``slot/K/NAME``, ``step`` and ``others``."""
    arrays = {f"weight/{name}": value for name, value in weights.items()}
    arrays |= {f"slot/{k}/{name}": value for name, values in slots.items() for k, value in enumerate(values)}
    return arrays | {"step": np.int64(step)} | others


def unpack(state, names):
    """Return the weights, the slots of each of ``names`` and the step of a packed state."""
    weights = {key.removeprefix("weight/"): value for key, value in state.items() if key.startswith("weight/")}
    slots = {name: [] for name in names}
    for name, values in slots.items():
        while f"slot/{len(values)}/{name}" in state:
            values.append(state[f"slot/{len(values)}/{name}"])
    return weights, slots, int(state["step"])


def refill(arrays, slots, state, to_device):
    """Write the weights and slots of a packed state into a backend's arrays, where they are; return the step."""
    weights, values, step = unpack(state, slots)
    for name, value in weights.items():
        arrays[name][...] = to_device(value)
    for name, kept in slots.items():
        for array, value in zip(kept, values[name], strict=True):
            array[...] = to_device(value)
    return step
