"""Keras 2.3.1, the last one with a CNTK backend, on this Python: importing this module loads it.

``from shim.cntk.keras import keras``; from then on ``import keras`` gives the same module. Its files stay as they are
on disk: those that need it are edited as they are imported, see :mod:`shim.cntk._edits`. Neither variables of the
environment nor files of the home folder choose anything, and no ``~/.keras`` is made.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

from shim.cntk._edits import Finder
from shim.cntk._load import load

VERSION = "2.3.1"
EDITS = {
    "keras.backend.load_backend": [
        ("if os.path.exists(_config_path):\n", "if False:\n"),
        ("if not os.path.exists(_keras_dir):\n", "if False:\n"),
        ("if not os.path.exists(_config_path):\n", "if False:\n"),
        ("_BACKEND = 'tensorflow'\n\n", "_BACKEND = 'cntk'\n\n"),
        ("if 'KERAS_BACKEND' in os.environ:\n", "if False:\n"),
        ("    sys.stderr.write('Using CNTK backend\\n')\n", "\n"),
    ],
    "keras.backend.cntk_backend": [  # a recurrent layer returned its last state: an LSTM that of its cell, as output
        (
            "                x, tuple(past_values) + tuple(rnn_constants))\n\n",
            "                x, tuple(past_values) + tuple(rnn_constants))\n"
            "            place = ([s is new_output for s in new_states] + [True]).index(True)\n",
        ),
        ("                new_output = n_s[-1]\n", "                new_output = (n_s + n_s[-1:])[place]\n"),
    ],
    "keras.callbacks.callbacks": [  # Python 3.10
        ("from collections import Iterable\n", "from collections.abc import Iterable\n"),
    ],
    "keras.engine.training_utils": [  # Python 3.10; it takes only abstract classes from there
        ("import collections\n", "import collections.abc as collections\n"),
    ],
}


def _load() -> ModuleType:
    if "keras" in sys.modules:
        raise ImportError("another Keras is loaded in this process; Keras on CNTK needs one of its own")
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("No module named 'keras'", name="keras")
    found = importlib.metadata.version("keras")
    if found != VERSION:
        raise ImportError(f"Keras on CNTK is Keras {VERSION}, and Keras {found} is installed")
    load()
    finder = Finder(Path(spec.origin).parents[1], EDITS, f"Keras {VERSION}")
    sys.meta_path.insert(0, finder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no GPU, and comparisons by identity
            return importlib.import_module("keras")
    except BaseException:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "keras"]:
            del sys.modules[name]
        raise


keras = _load()
