"""CNTK's errors without the stack of C++ calls, and stderr without what it writes there at each error."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

_NOISE = re.compile(
    rb"\n?About to throw exception '.*?'\n|Selected CPU as the process wide default device\.\n"
    rb"|\[Note:\] Trainer ctor: \d+ of the model parameters are not covered [^\n]*\n",  # they are not to be trained
    re.S,
)
_lock = threading.RLock()


def plain_message(error: BaseException) -> str:
    """Return an error's message without the stack of C++ calls that CNTK appends."""
    return str(error).split("\n\n[CALL STACK]")[0].strip()


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Raise an error of CNTK in this block as the same kind of error with its plain message, and write less to stderr.

    For building graphs, not for timed calls: see :func:`quiet`.
    """
    with quiet():
        try:
            yield
        except (RuntimeError, ValueError, TypeError) as error:
            if "[CALL STACK]" not in str(error):
                raise
            raise type(error)(plain_message(error)) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Leave out of stderr what CNTK's libraries write in this block at an error, on choosing the device or a trainer.

    All else is written at its end; only a process that ends inside the block loses it. One thread at a time.
    """
    with _lock:
        try:
            sys.stderr.flush()
            stderr = os.dup(2)
        except (OSError, ValueError, AttributeError):  # there is none
            yield
            return
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), 2)
            try:
                yield
            finally:
                if sys.stderr is not None:
                    sys.stderr.flush()
                os.dup2(stderr, 2)
                os.close(stderr)
                file.seek(0)
                rest = _NOISE.sub(b"", file.read())
                while rest:
                    rest = rest[os.write(2, rest) :]
