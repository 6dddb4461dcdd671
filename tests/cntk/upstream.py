"""Run the tests that CNTK's wheel brings with it, under this loader, and compare with what is expected.

    .shim/env/cntk/bin/python tests/cntk/upstream.py [--sample] [FILE ...]

Each file has a process of its own. upstream_failures.txt lists the tests that fail, under the reason. The exit status
is 1 if a test fails that is not listed, if a listed one passes, if a process dies, or if too few pass.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from packaging.markers import Marker

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from shim.cntk import _place  # noqa: E402

LEAST = 1738  # tests that pass on Python 3.11, of all
LIMIT_SECONDS = 900  # for one file
SAMPLE = (
    "cntk/debugging/tests/debug_test.py",
    "cntk/eval/tests/evaluator_test.py",
    "cntk/internal/tests/sanitize.py",
    "cntk/layers/tests/layers_test.py",
    "cntk/learners/tests/learner_test.py",
    "cntk/losses/tests/cosine_distance_test.py",
    "cntk/ops/tests/function_tests.py",
    "cntk/ops/tests/linear_test.py",
    "cntk/ops/tests/non_linear_test.py",
    "cntk/ops/tests/reshaping_test.py",
    "cntk/ops/tests/sequence_test.py",
    "cntk/ops/tests/userfunction_test.py",
    "cntk/tests/value_test.py",
    "cntk/train/tests/trainer_test.py",
)


def expected_failures() -> set[str]:
    """Return the tests that are listed for this Python."""
    lines = (HERE / "upstream_failures.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("  ; ")[::2] for line in lines if line and not line.startswith("#"))
    return {test.strip() for test, marker in pairs if not marker or Marker(marker).evaluate()}


def files(site: Path) -> list[str]:
    """Return the files of the wheel that have tests, relative to ``site``."""
    candidates = [path for kind in ("test", "tests") for path in site.glob(f"cntk/**/{kind}/*.py")]
    tests = (path for path in candidates if re.search(r"^ *def test", path.read_text(encoding="utf-8"), re.MULTILINE))
    return sorted({str(path.relative_to(site)) for path in tests})


def run(site: Path, file: str) -> tuple[list[list[str]], str | None]:
    """Return the results of a file, each as outcome and test, and how its process died, or None."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results")
        paths = [str(HERE), str(HERE.parents[1])]
        environ = os.environ | {"CNTK_RESULTS": str(results), "PYTHONPATH": os.pathsep.join(paths)}
        command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "old_names", "-p", "no:cacheprovider", "-q"]
        command += ["--rootdir", str(site), "--basetemp", str(Path(folder, "tmp")), "--tb=short", str(site / file)]
        try:
            process = subprocess.run(
                command,
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=LIMIT_SECONDS,
            )
            died = None if process.returncode in (0, 1, 2, 5) else f"status {process.returncode}"
            output = process.stdout
        except subprocess.TimeoutExpired as error:
            died, output = f"still running after {LIMIT_SECONDS} s", error.stdout or b""
        log = os.environ.get("CNTK_LOGS")
        if log:
            Path(log, file.replace("/", "-") + ".log").write_bytes(output)
        lines = results.read_text(encoding="utf-8").splitlines() if results.exists() else []
        return [json.loads(line) for line in lines], died


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", action="store_true", help="a fixed part of the files, 2 minutes")
    parser.add_argument("files", nargs="*", metavar="FILE", help="as cntk/ops/tests/linear_test.py; default: all")
    chosen = parser.parse_args()
    site = _place.checked()
    every = files(site)
    selected = chosen.files or ([file for file in every if file in SAMPLE] if chosen.sample else every)
    listed = {test for test in expected_failures() if test.partition("::")[0] in selected}

    total: collections.Counter[str] = collections.Counter()
    failed, passed, deaths = set(), set(), []
    start = time.monotonic()
    for file in selected:
        began = time.monotonic()
        results, died = run(site, file)
        counts = collections.Counter(outcome for outcome, _ in results)
        total += counts
        failed |= {test for outcome, test in results if outcome in ("failed", "error")}
        passed |= {test for outcome, test in results if outcome == "passed"}
        if died:
            deaths.append(f"{file}: {died}")
        text = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "nothing"
        print(f"{file}: {text}, {time.monotonic() - began:.0f} s{f', DIED: {died}' if died else ''}", flush=True)

    text = ", ".join(f"{number} {outcome}" for outcome, number in sorted(total.items()))
    print(f"\n{len(selected)} files: {text}, {time.monotonic() - start:.0f} s")
    problems = [f"died: {death}" for death in deaths]
    problems += [f"failed, and is not listed: {test}" for test in sorted(failed - listed)]
    problems += [f"passed, but is listed: {test}" for test in sorted(listed & passed - failed)]
    problems += [f"did not run, but is listed: {test}" for test in sorted(listed - failed - passed)]
    everything = len(selected) == len(every)
    if everything and total["passed"] < LEAST and sys.version_info < (3, 12):
        problems.append(f"{total['passed']} tests passed, and {LEAST} should")
    print("\n".join(problems) or f"as expected: {len(listed)} failures, all of them listed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
