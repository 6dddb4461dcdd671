"""Playing the rounds of a comparison: workers are started, cases prepared, blocks timed, and failures survived."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from shim import environments
from shim.measure import machine, process, runfile, schedule

#: What starting a worker and preparing a case cost, in blocks, for the progress bar.
START_STEPS, PREPARE_STEPS = 20, 3


class Progress(Protocol):
    """What a run reports to."""

    def start(self, total: int, description: str = "") -> None: ...
    def advance(self, text: str | None = None, steps: int = 1) -> None: ...
    def stop(self) -> None: ...


class Silent:
    """Progress that is not shown."""

    def start(self, total: int, description: str = "") -> None: ...
    def advance(self, text: str | None = None, steps: int = 1) -> None: ...
    def stop(self) -> None: ...


class Rounds:
    """The rounds of one run. Records wait in memory until :meth:`open` names the file that takes them."""

    def __init__(self, config: dict[str, Any], progress: Progress, earlier: runfile.Run | None = None) -> None:
        self.config, self.progress = config, progress
        self.failed: list[str] = []
        self._waiting: list[runfile.Record] = []
        self._writer: runfile.Writer | None = None
        self._workers: dict[str, process.Worker] = {}
        self._begun: int | None = None
        self._steps = 0
        self._replaced: set[str] = set()  # targets whose worker died in this round
        self._ready: set[tuple[str, str, str]] = set()
        self._skipped: set[tuple[str, str | None, str | None]] = set()  # in this round
        self._left_out: set[tuple[str, str | None, str | None]] = set()  # for good
        self._deaths: Counter[tuple[str, str | None, str | None]] = Counter()
        self._versions: dict[str, Any] = {}
        if earlier:
            self._left_out |= {(f["target"], f.get("mode"), f.get("case")) for f in earlier.failures if f["left_out"]}
            self._versions |= {w["target"]: w["describe"]["versions"] for w in earlier.workers}

    # ------------------------------------------------------------------------------------------------- the run file

    @property
    def is_open(self) -> bool:
        return self._writer is not None

    def open(self, path: Path, first: runfile.Record) -> None:
        """Open the run file, append ``first`` and then whatever has been waiting."""
        writer = runfile.Writer(path)
        try:
            writer.write(first)
        except runfile.RunFileError:
            writer.close()
            raise
        self._writer = writer
        for record in self._waiting:
            writer.write(record)

    def record(self, record: runfile.Record) -> None:
        """Append a record to the run file."""
        if self._writer:
            self._writer.write(record)
        else:
            self._waiting.append(record)

    def kill(self) -> None:
        """End all workers."""
        while self._workers:
            self._workers.popitem()[1].kill()

    def close(self) -> None:
        """End all workers, the progress bar and the file."""
        self.kill()
        self.progress.stop()
        if self._writer:
            self._writer.close()

    # --------------------------------------------------------------------------------------------------- the rounds

    def begin(self, number: int, wanted: Sequence[str]) -> dict[str, list[str]]:
        """Start the workers of a round; return the modes of each target that could be loaded."""
        self._begun, self._replaced, self._ready, self._skipped = number, set(), set(), set()
        self.record({"record": "round", "round": number, "load_average": machine.load_average()})
        targets = list(dict.fromkeys(name.partition(":")[0] for name in wanted))
        first = not self.is_open
        if first:
            self.progress.start(len(targets), "starting")
        modes = {}
        for target in schedule.start_order(self.config["seed"], number, targets):
            reply = self._start(target)
            if reply:
                modes[target] = reply["modes"]
            self._step(f"started {target}", 1 if first else START_STEPS)
        if first:
            self.progress.stop()
        return modes

    def play(self, numbers: Sequence[int]) -> None:
        """Play these rounds."""
        targets = list(dict.fromkeys(entry["target"] for entry in self.config["targets"]))
        pairs = len(self.config["targets"]) * len(self.config["cases"])
        each_target = Counter(entry["target"] for entry in self.config["targets"] for _ in self.config["cases"])
        started = sum(number != self._begun for number in numbers) * len(targets)
        each = pairs * (PREPARE_STEPS + self.config["sweeps"])
        self.progress.start(started * START_STEPS + len(numbers) * each, self._title())
        for number in numbers:
            if number != self._begun:
                self.begin(number, targets)
            for target in schedule.start_order(self.config["seed"], number, targets):
                goal = self._steps + PREPARE_STEPS * each_target[target]
                self._prepare(target)
                self._step(f"preparing {target}", goal - self._steps)  # what was left out
            self._play_blocks(number)
            self.kill()
            self.record({"record": "round_end", "round": number})

    def _play_blocks(self, number: int) -> None:
        entries = {e["label"]: (e["target"], e["mode"]) for e in self.config["targets"]}
        order = schedule.blocks(self.config["seed"], number, self.config["sweeps"], self.config["cases"], list(entries))
        for sweep, case, label in order:
            target, mode = entries[label]
            if (target, mode, case) in self._ready:
                timed = self._ask(target, mode, case, "block")
                if timed:
                    self.record({"record": "block"} | self._row(target, mode, case) | {"sweep": sweep} | timed)
            self._step(f"{case.partition('/')[0]} {label}", 1)

    def _step(self, text: str, steps: int) -> None:
        self._steps += steps
        self.progress.advance(f"{self._title()}, {text}", steps)

    def _title(self) -> str:
        return f"round {1 + (self._begun or 0)} of {self.config['rounds']}"

    def _row(self, target: str, mode: str | None, case: str | None) -> dict[str, Any]:
        row = {"round": self._begun, "target": target, "mode": mode, "case": case}
        return {name: value for name, value in row.items() if value is not None}

    # -------------------------------------------------------------------------------------------------- the workers

    def _start(self, target: str) -> dict[str, Any] | None:
        """Start a worker and let it load its backend; return what it answers, None if it was left out."""
        if (target, None, None) in self._left_out:
            return None
        chosen = process.variables(self.config["threads"], self.config["device"])
        try:
            python = environments.python(target)
        except (ValueError, RuntimeError) as error:
            self._fail(target, None, None, "environment", str(error), left_out=True)
            return None
        environ = environments.variables() | chosen
        self._workers[target] = process.Worker(python, environ, self.config["cpus"])
        settings = {name: self.config[name] for name in ("device", "precision", "threads")}
        reply = self._ask(target, None, None, "load", backend=environments.parse(target)[0], **settings)
        if reply is None:
            return None
        versions = reply["describe"].get("versions")
        if self._versions.setdefault(target, versions) != versions:
            reason = f"its versions are {versions}, but in the rounds before they were {self._versions[target]}"
            self._fail(target, None, None, "setup", reason, left_out=True)
            return None
        given = {"variables": machine.relevant(environ), "replacement": target in self._replaced}
        self.record({"record": "worker"} | self._row(target, None, None) | reply | given)
        return reply

    def _pairs(self, target: str) -> Iterator[tuple[str, str]]:
        modes = [e["mode"] for e in self.config["targets"] if e["target"] == target and e["mode"]]
        return ((mode, case) for mode in modes for case in self.config["cases"])

    def _prepare(self, target: str) -> None:
        """Prepare every case of a target that is not left out."""
        worker = self._workers.get(target)
        home = str(environments.home() / "cache" / "parity")
        for mode, case in self._pairs(target):
            if self._workers.get(target) is not worker:
                return  # it died, and the worker in its place has prepared the rest
            if worker and not {(target, mode, case), (target, None, None)} & (self._left_out | self._skipped):
                built = self._ask(target, mode, case, "prepare", cache=home)
                if built:
                    self._ready.add((target, mode, case))
                    self.record({"record": "build"} | self._row(target, mode, case) | built)
            if target not in self._replaced:
                self._step(f"preparing {target}", PREPARE_STEPS)

    def _ask(
        self, target: str, mode: str | None, case: str | None, command: str, **request: Any
    ) -> dict[str, Any] | None:
        """Ask a worker; record a failure and return None if it fails or dies, in which case another takes its place."""
        if case is not None:
            request |= {"case": case, "mode": mode, "block_seconds": self.config["block_seconds"]}
        try:
            reply = self._workers[target].ask(command, **request)
        except process.WorkerDied as error:
            self._workers.pop(target).kill()
            self._deaths[target, mode, case] += 1
            hopeless = case is None or self._deaths[target, mode, case] > 1
            self._fail(target, mode, case, command, f"the worker {error}", left_out=hopeless)
            self._replace(target)
            return None
        if reply.pop("ok"):
            return reply
        self._fail(target, mode, case, reply["stage"], reply["reason"], left_out=True)
        return None

    def _replace(self, target: str) -> None:
        """Start another worker for the rest of this round, once."""
        self._ready = {pair for pair in self._ready if pair[0] != target}
        if target in self._replaced or (target, None, None) in self._left_out:
            return
        self._replaced.add(target)
        if self._start(target):
            self._prepare(target)

    def _fail(
        self, target: str, mode: str | None, case: str | None, stage: str, reason: str, *, left_out: bool
    ) -> None:
        """Record a failure. ``left_out`` leaves its case, or its target, out of the rest of the run."""
        (self._left_out if left_out else self._skipped).add((target, mode, case))
        self._ready.discard((target, mode or "", case or ""))
        if case is None and target in self._workers:
            self._workers.pop(target).kill()
        self.failed.append(f"{target}: {reason}")
        failure = {"stage": stage, "reason": reason, "left_out": left_out}
        self.record({"record": "failure"} | self._row(target, mode, case) | failure)
