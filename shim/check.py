"""``shim check``: every op of every installed backend against the contract, each in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shim import environments, parity, protocol
from shim.environments import Progress


@dataclass(frozen=True)
class Outcome:
    """The parity of one case on one target: ``worst`` is its error as a share of the tolerance.

    ``unsupported`` says why the backend refuses the case, if it is by its own account not made for it.
    """

    target: str
    mode: str
    case: str
    worst: float | None
    error: str | None
    unsupported: str | None = None


def check(
    target: str, modes: Sequence[str], ops: Sequence[str], progress: Progress, device: str = "cpu"
) -> Iterator[Outcome]:
    """Yield the outcome of every conformance case on a target, as its process reports them.

    No ``modes`` and no ``ops`` mean all of them. Raises ``RuntimeError`` if the process dies, with what it said last.
    """
    command = [str(environments.python(target)), "-P", "-m", "shim.check", environments.parse(target)[0]]
    command += [f"--device={device}", *(f"--mode={mode}" for mode in modes), *(f"--op={op}" for op in ops)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=said, text=True, env=environments.variables()
        )
        try:
            for line in process.stdout or ():
                record = json.loads(line)
                if "total" in record:
                    progress.start(record["total"], target)
                else:
                    progress.advance(target)
                    yield Outcome(target, **record)
        except BaseException:
            process.kill()
            raise
        finally:
            status = process.wait()
            if process.stdout:
                process.stdout.close()
        if status:
            said.seek(0)
            lines = said.read().strip().splitlines()
            raise RuntimeError(
                f"checking {target} stopped with status {status}: {lines[-1] if lines else 'no message'}"
            )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return counts, the worst share of the tolerance and the failures, as ``--json`` prints them."""
    counts = Counter("failed" if o.error else "unsupported" if o.unsupported else "passed" for o in outcomes)
    return {
        "passed": counts["passed"],
        "failed": counts["failed"],
        "unsupported": counts["unsupported"],
        "reasons": dict(Counter(o.unsupported for o in outcomes if o.unsupported)),
        "worst": max((o.worst for o in outcomes if o.worst is not None), default=None),
        "failures": [asdict(o) for o in outcomes if o.error],
    }


def main(arguments: Sequence[str]) -> None:
    """Check the backend named first, in this process; one JSON line a case goes to standard output."""
    import shim

    records = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a framework prints must not end up between the records
    name, *rest = arguments
    device = next((a.removeprefix("--device=") for a in rest if a.startswith("--device=")), "cpu")
    try:
        backend = shim.load(name)
        backend.setup(device=device)
        found = [*parity.conformance_cases(), *(case for case in parity.half_cases() if protocol.offers(backend, case))]
    except (ValueError, RuntimeError) as refusal:
        sys.exit(str(refusal))
    modes = [a.removeprefix("--mode=") for a in rest if a.startswith("--mode=")] or list(backend.MODES)
    ops = {a.removeprefix("--op=") for a in rest if a.startswith("--op=")}
    cases = [case for case in found if not ops or case.op in ops]
    print(json.dumps({"total": len(cases) * len(modes)}), file=records)
    for mode in modes:
        for case in cases:
            worst, error, unsupported = None, None, None
            try:
                worst = parity.verify(backend, case, mode)["worst"]
            except protocol.Unsupported as limit:
                if protocol.offers(backend, case):
                    error = f"refused, although it is offered: {limit}"
                unsupported = str(limit)
            except Exception as problem:
                error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            outcome = {"worst": worst, "error": error, "unsupported": unsupported}
            print(json.dumps({"mode": mode, "case": case.id} | outcome), file=records)


if __name__ == "__main__":
    main(sys.argv[1:])
