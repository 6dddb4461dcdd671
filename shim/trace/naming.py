"""Names for the ops of a model while it is profiled: a thin ``ops`` object that says whose turn it is.

Nothing here is in the way of a program that is timed: names are put in only while a second program is built for the
profiler, and for the frameworks that do not compile, while it runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from shim import models
from shim.measure import clock
from shim.trace.events import STEP

OPTIMIZER = "optimizer"
Scope = Callable[[str], AbstractContextManager[Any]]
#: Instructions of XLA that several ops share, whoever was the first
SHARED = ("constant", "parameter", "broadcast")
_MARK = re.compile(r"shim\.([a-z]\w*)\.(\d+)")


def mark(op: str, call: int) -> str:
    """Return the name under which a framework keeps one op call; :func:`label` finds it again in longer names."""
    return f"shim.{op}.{call}"


def label(text: str) -> str | None:
    """Return the op call that a framework's name carries, such as ``dense 2``, the innermost one; None without any."""
    found = _MARK.findall(text)
    if not found:
        return None
    op, call = found[-1]
    return OPTIMIZER if op == OPTIMIZER else f"{op} {call}"


def fused(instructions: Iterable[tuple[str, str, str, str | None]]) -> dict[str, str]:
    """Return instruction -> op calls of an XLA program, in which one instruction may serve several ops.

    ``instructions`` are (computation, name, name in the framework, computation fused into it), callees before callers,
    and none of :data:`SHARED`.
    """
    found: dict[str, str] = {}
    inside: dict[str, dict[str, None]] = {}
    for computation, name, full, called in instructions:
        own = label(full)
        labels = inside.get(called or "") or dict.fromkeys([own] if own else [])
        inside.setdefault(computation, {}).update(labels)
        if labels:
            found[name] = " + ".join(sorted(labels))
    return found


def shown(text: str) -> str:
    """Return a framework's name as the table has it: an op call itself is ``ops.dense``, as in the model."""
    found = _MARK.fullmatch(text)
    return text if not found else found[1] if found[1] == OPTIMIZER else f"ops.{found[1]}"


@contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replace an attribute by what ``make`` makes of it, for a while."""
    original = getattr(owner, name)
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextmanager
def named(wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Let every model that is built or run meanwhile call ``wrap(mark, function)`` in the place of an op."""

    def naming(build: Callable[..., Any]) -> Callable[..., Any]:
        def call(model: Any, ops: Any, *args: Any) -> Any:
            calls: Counter[str] = Counter()

            def numbered(op: str, function: Callable[..., Any]) -> Callable[..., Any]:
                def count(*args: Any, **options: Any) -> Any:
                    calls[op] += 1
                    return wrap(mark(op, calls[op]), function)(*args, **options)

                return count

            return build(model, SimpleNamespace(**{op: numbered(op, f) for op, f in vars(ops).items()}), *args)

        return call

    with replaced(models, "losses", naming), replaced(models, "logits", naming):
        yield


@contextmanager
def scoped(scope: Scope, *updates: tuple[Any, str], ops: bool = True) -> Iterator[None]:
    """Put a framework's own scope of names around its optimizer and, with ``ops``, around every op of a model.

    ``updates`` are the functions that move weights, each as its owner and its name there.
    """

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            with scope(name):
                return function(*args, **options)

        return call

    with ExitStack() as stack:
        if ops:
            stack.enter_context(named(wrap))
        for owner, update in updates:
            stack.enter_context(replaced(owner, update, partial(wrap, mark(OPTIMIZER, 1))))
        yield


def run(prepared: clock.Prepared, steps: int, scope: Scope) -> None:
    """Run steps, each of them in a scope and synchronised inside it."""
    for _ in range(steps):
        with scope(STEP):
            prepared.synchronize(prepared.call())


def warm(prepared: clock.Prepared) -> None:
    """Run the steps that a framework needs to get into its stride."""
    for _ in range(3):
        prepared.synchronize(prepared.call())
