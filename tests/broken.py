"""Backends with one fault each, to show that the conformance checks see it.

Each is NumPy, or another backend, behind a device array type of its own, with one thing wrong, as :data:`FAULTS` names.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np

import shim
from shim import contract


class DeviceArray(np.ndarray):
    """An array that is not a host array, so that returning the wrong kind can be told."""


def _swap_gates(args):
    def swapped(w):
        i, f, g, o = np.split(w, 4, axis=-1)
        return np.concatenate([i, g, f, o], axis=-1)

    return [args[0], *(swapped(w) for w in args[1:])]


def _zero_gradient(op, options, args, y, grads):
    return y, [np.zeros_like(g) for g in grads]


def _missing_bias_gradient(op, options, args, y, grads):
    return y, [np.zeros_like(g) if g.ndim == 1 else g for g in grads]


def _not_a_number(op, options, args, y, grads):
    y = y.copy()
    y.flat[-1] = np.nan
    return y, grads


def _off_by_one_padding(op, options, args, y, grads):
    return (np.roll(y, 1, axis=1) if options.get("padding") == "same" else y), grads


def _mean_by_one_less(op, options, args, y, grads):
    return y * y.dtype.type(args[0].shape[1] / (args[0].shape[1] - 1)), grads


def _last_use_only(op, options, args, y, grads):
    """Assign the rows of a table's gradient instead of adding them up."""
    ids, table = args
    if not grads:
        return y, grads
    wrong = np.zeros_like(table)
    uses = np.zeros(len(table), table.dtype)
    np.add.at(uses, ids.ravel(), 1)
    used = uses > 0
    wrong[used] = grads[0][used] / uses[used][:, None]
    return y, [wrong]


def _gates_of_keras_3(op, options, args, y, grads):
    """Give the hard sigmoids Keras 3's slope of 1/6."""
    if options.get("recurrent_activation") != "hard_sigmoid":
        return y, grads
    weights = [a * np.repeat(np.array([5 / 6, 5 / 6, 1, 5 / 6], a.dtype), a.shape[-1] // 4) for a in args[1:]]
    return shim.load("numpy").forward(op, options, "eager").bare(args[0], *weights), grads


#: name -> (ops that have the fault, change of the arguments, change of the results)
FAULTS = {
    "zero gradient": ({"dense", "conv2d", "lstm", "embedding_average"}, None, _zero_gradient),
    "missing bias gradient": ({"dense", "conv2d", "lstm"}, None, _missing_bias_gradient),
    "swapped gates": ({"lstm", "bilstm"}, _swap_gates, None),
    "hard sigmoids of Keras 3": ({"lstm", "bilstm"}, None, _gates_of_keras_3),
    "dropped step": ({"lstm"}, lambda a: [a[0][:, [1, *range(1, a[0].shape[1])]], *a[1:]], None),
    "flipped kernel": ({"conv2d"}, lambda a: [a[0], a[1][::-1, ::-1].copy(), a[2]], None),
    "off-by-one padding": ({"conv2d"}, None, _off_by_one_padding),
    "transposed weight": ({"dense"}, lambda a: [a[0], a[1].T.copy().reshape(a[1].shape), a[2]], None),
    "mean by T-1": ({"embedding_average"}, None, _mean_by_one_less),
    "duplicate ids not summed": ({"embedding_average"}, None, _last_use_only),
    "wrong dtype": ({"dense"}, None, lambda op, options, args, y, grads: (y.astype(np.float16), grads)),
    "gradient in the wrong dtype": (
        {"dense"},
        None,
        lambda op, options, args, y, grads: (y, [g.astype(np.float16) for g in grads]),
    ),
    "NaN": ({"dense", "lstm"}, None, _not_a_number),
    "NaN gradient": (
        {"conv2d"},
        None,
        lambda op, options, args, y, grads: (y, [np.full_like(g, np.nan) for g in grads]),
    ),
    "host array returned": ({"dense"}, None, None),
    "gradient of the first argument forgotten": (
        {"dense"},
        None,
        lambda op, options, args, y, grads: (y, grads[1:]),
    ),
    "a result a little off": (
        {"lstm"},
        None,
        lambda op, options, args, y, grads: (y + y.dtype.type(1e-4 if y.dtype == np.float32 else 1e-12), grads),
    ),
}


def backend(fault=None, base=None):
    """Return a backend with this fault, or a faultless one, that computes on ``base``, by default NumPy."""
    ops, change_args, change_results = FAULTS[fault] if fault else (set(), None, None)
    base = base or shim.load("numpy")

    def build(maker, op, options, mode, **wanted):
        run = maker(op, options, base.MODES[0], **wanted).bare
        backward = maker is base.forward_backward

        def program(*called):
            args, dy = (called[0], [called[1]]) if backward else (called, [])
            args = [np.array(a) for a in args]
            used = change_args(args) if change_args and op in ops else args
            used = [base.to_device(a) for a in used]
            result = run(used, base.to_device(np.array(dy[0]))) if backward else (run(*used), [])
            y, grads = np.array(base.to_numpy(result[0])), [np.array(base.to_numpy(g)) for g in result[1]]
            if grads and change_args and op in ops:
                floats = [a for a in args if a.dtype.kind == "f"]
                grads = [np.resize(g, a.shape) for g, a in zip(grads, floats[-len(grads) :], strict=True)]
            if change_results and op in ops:
                y, grads = change_results(op, options, args, y, grads)
            hosted = fault == "host array returned" and op in ops
            y, grads = (y, grads) if hosted else (y.view(DeviceArray), [g.view(DeviceArray) for g in grads])
            return (y, grads) if backward else y

        return program

    return SimpleNamespace(
        MODES=("eager",),
        to_device=lambda value: np.array(value).view(DeviceArray),
        to_numpy=lambda array: np.asarray(array),
        synchronize=lambda outputs: None,
        forward=functools.partial(build, base.forward),
        forward_backward=functools.partial(build, base.forward_backward),
    )


def caught(fault, base=None, cases=None):
    """Return the ops whose conformance cases fail on the backend with this fault, with the first message of each."""
    from shim import parity

    messages = {}
    for case in cases or parity.conformance_cases():
        if case.op in messages:
            continue
        try:
            parity.verify(backend(fault, base), case, "eager")
        except parity.ParityError as error:
            messages[case.op] = str(error)
    return messages


assert all(ops <= set(contract.OPS) for ops, _, _ in FAULTS.values())
