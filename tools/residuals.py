"""How far the parts of a training step add up: ``.venv/bin/python -m tools.residuals FOLDER [MODEL]...``

For each model one interleaved run of the parts of its step on all backends, kept in ``FOLDER`` and not made again, and
a profile of the step on each. Printed are two tables for ``docs/explaining.md``: three views of a step, the sum of its
parts, the time that its kernels cover in the profile, and the step itself; and for each pair what the parts leave
open, as a share of the slower step, with its interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from shim import models, trace
from shim.cli.common import Progress
from shim.explain import attribution
from shim.measure import bench, runfile

TARGETS = ("torch", "tensorflow", "jax", "cntk")
PAIRS = (("torch", "tensorflow"), ("torch", "jax"), ("tensorflow", "cntk"))
ROUNDS, SWEEPS = 4, 3


def measure(folder: Path, name: str) -> runfile.Run:
    """Return the run of a model's parts on all backends, an earlier one where there is one."""
    path = folder / f"{name}.jsonl"
    if path.exists():
        return bench.resume(path, Progress())
    return bench.run(
        path,
        targets=TARGETS,
        cases=attribution.wanted(models.load(name)),
        rounds=ROUNDS,
        sweeps=SWEEPS,
        progress=Progress(),
        choose=attribution.all_parts,
    )


def profiles(folder: Path, name: str) -> dict[str, float]:
    """Return the share of a step that kernels cover on each backend, from its own profiler."""
    path = folder / f"{name}-profiles.json"
    if not path.exists():
        found = {target: trace.profile(name, target, Progress()) for target in TARGETS}
        covered = {target: 1 - one["uncovered"] / one["wall"] for target, one in found.items()}
        path.write_text(json.dumps(covered), encoding="utf-8")
    result: dict[str, float] = json.loads(path.read_text("utf-8"))
    return result


def main(folder: Path, names: list[str]) -> None:
    """Measure what is missing and print both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in names:
        run = measure(folder, name)
        found[name] = [attribution.explain(run, *pair) for pair in PAIRS]
    covered = {name: profiles(folder, name) for name in names}
    print(f"| model | {' | '.join(TARGETS)} |\n|---|{'---|' * len(TARGETS)}")
    for name in names:
        views = {}
        for explanation in found[name]:
            for side, target in enumerate((explanation.first, explanation.second)):
                step, rest = explanation.step[side].value, (explanation.residual.first, explanation.residual.second)
                views[target] = (step - rest[side].value, covered[name][target] * step, step)
        cells = (" / ".join(f"{1e3 * view:.3g}" for view in views[target]) for target in TARGETS)
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(f"\n| model | {' | '.join('/'.join(pair) for pair in PAIRS)} |\n|---|{'---|' * len(PAIRS)}")
    shares = []
    for name in names:
        cells = []
        for explanation in found[name]:
            slower = max(step.value for step in explanation.step)
            rest = explanation.residual.gap
            shares.append(explanation.residual_share)
            cells.append(f"{rest.value / slower:+.0%} [{rest.low / slower:+.0%}, {rest.high / slower:+.0%}]")
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(f"\n{sum(share <= 0.1 for share in shares)} of {len(shares)} at most 10 % of the slower step")


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m tools.residuals", description=__doc__.partition(":")[0] + ".")
    parser.add_argument("folder", type=Path, help="for the runs; what is in it is not measured again")
    parser.add_argument("model", nargs="*", default=models.names(), help="default: all seven, in half an hour")
    given = parser.parse_args()
    main(given.folder, list(given.model))
