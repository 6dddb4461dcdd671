"""Playing the rounds of a comparison: workers are started, cases prepared, blocks timed, and failures survived."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

from shim import environments, settings, statistics
from shim.measure import machine, pace, pinning, process, runfile, schedule

#: What starting a worker and preparing a case cost, in blocks, for the progress bar.
START_STEPS, PREPARE_STEPS = 20, 3
#: Rounds in which workers are started and cases built one after the other, so that the times of that are clean. In
#: the others as many workers as there are CPUs do it side by side; whatever is warmed up or timed runs alone.
ALONE = 2
#: Only targets whose builds and first calls take longer than this, alone and together, prepare beside others. The rest
#: would be in the way: threads that spin while they wait for one another, as those of torch and CNTK do, take fifty
#: times as long where they have no CPU each.
LONG_SECONDS = 2.5
CEILINGS = 2  # rounds in which the ceilings are measured
WAITING = 0.75  # seconds that may be spent on waiting for a faster machine, for each second that is timed
#: Rounds in which all take part in every case. In later ones only those do whose ratio is not yet known to NARROW, half
#: the length of an interval as a share of the ratio, and the baseline: what differs between processes, only processes
#: average out. Stopping by width costs no coverage after eight rounds (95 % in simulations, 92 % after six). The fewer
#: are left, the more sweeps each gets, up to MORE times as many: start and build cost as much as ever.
WHOLE = 8
NARROW = 0.045
MORE = 4


class Progress(Protocol):
    """What a run reports to."""

    def start(self, total: int, description: str = "") -> None: ...
    def advance(self, text: str | None = None, steps: int = 1) -> None: ...
    def stop(self) -> None: ...


#: From a run so far, the cases that its next round is to have; none ends it.
Choice = Callable[[runfile.Run], Sequence[str]]


class Silent:
    """Progress that is not shown."""

    def start(self, total: int, description: str = "") -> None: ...
    def advance(self, text: str | None = None, steps: int = 1) -> None: ...
    def note(self, text: str) -> None: ...
    def stop(self) -> None: ...


class Rounds:
    """The rounds of one run. Records wait in memory until :meth:`open` names the file that takes them."""

    def __init__(self, config: dict[str, Any], progress: Progress, earlier: runfile.Run | None = None) -> None:
        self.config, self.progress = config, progress
        self.failed: list[str] = []
        self._waiting: list[runfile.Record] = []
        self._writer: runfile.Writer | None = None
        self._workers: dict[str, process.Worker] = {}
        self._pace: pace.Pace | None = None
        self._begun: int | None = None
        self._cases: list[str] = config["cases"]  # of this round
        self._only: dict[str, list[str]] = {}  # the contestants of a case in this round, where not all take part
        self._steps = 0
        self._side_by_side = False
        self._beside: set[str] = set()  # targets that build beside others in this round
        self._ahead_seconds: dict[str, float] = {}
        self._alone_seconds: dict[str, float] = {}  # of builds and first calls
        self._replaced: set[str] = set()  # targets whose worker died in this round
        self._built: dict[tuple[str, str, str], dict[str, Any]] = {}  # checked, not yet warmed up
        self._ready: set[tuple[str, str, str]] = set()
        self._cache = str(environments.home() / "cache" / "parity")
        self._skipped: set[tuple[str, str | None, str | None]] = set()  # in this round
        self._left_out: set[tuple[str, str | None, str | None]] = set()  # for good
        self._deaths: Counter[tuple[str, str | None, str | None]] = Counter()
        self._versions: dict[str, Any] = {}
        self._asked: set[tuple[str, str | None, str | None]] = set()  # for times on the device: rows, or whole targets
        self._placements: dict[tuple[str, str, str], str] = {}  # of threads on CPUs, as the first process found them
        self._started = monotonic()
        self.out_of_time = False  # before all rounds that were planned
        if earlier:
            for build in earlier.builds:
                if build.get("placement") in pinning.PLACEMENTS:
                    self._placements.setdefault((build["target"], build["mode"], build["case"]), build["placement"])
            whole = {record["round"] for record in earlier.rounds if record["record"] == "round_end"}
            self._asked |= {(d["target"], d["mode"], d["case"]) for d in earlier.devices if d["round"] in whole}
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
        if self._pace:
            self._pace.close()
        self.progress.stop()
        if self._writer:
            self._writer.close()

    # --------------------------------------------------------------------------------------------------- the rounds

    def begin(self, number: int, wanted: Sequence[str]) -> dict[str, list[str]]:
        """Start the workers of a round; return the modes of each target that could be loaded."""
        self._begun, self._replaced, self._ready, self._skipped = number, set(), set(), set()
        state = {
            "load_average": machine.load_average(),
            "parallel_speedup": machine.parallel_speedup(self.config["threads"]),
        }
        only = {"only": self._only} if self._only else {}
        self.record({"record": "round", "round": number} | state | {"cases": self._cases} | only)
        targets = list(dict.fromkeys(name.partition(":")[0] for name in wanted))
        first = not self.is_open
        if first:
            self.progress.start(len(targets), "starting")
        modes = {}
        order = schedule.start_order(self.config["seed"], number, targets)
        self._side_by_side, self._beside = number >= self.config.get("alone", ALONE), set()
        if self._side_by_side:
            self._go_ahead([target for target in order if self._spawn(target)], load=True)
        for target in order:
            reply = self._start(target)
            if reply:
                modes[target] = reply["modes"]
            self._step(f"started {target}", 1 if first else START_STEPS)
        if first:
            self.progress.stop()
        return modes

    def play(self, numbers: Sequence[int], choose: Choice | None = None) -> None:
        """Play these rounds, until none of the cases needs more; ``choose`` may say instead which ones do.

        Rounds beyond those of the configuration are spare ones.
        """
        targets = list(dict.fromkeys(entry["target"] for entry in self.config["targets"]))
        pairs = len(self.config["targets"]) * len(self.config["cases"])
        each_target = Counter(entry["target"] for entry in self.config["targets"] for _ in self.config["cases"])
        started = sum(number != self._begun for number in numbers) * len(targets)
        each = pairs * len(numbers) * (PREPARE_STEPS + self.config["sweeps"])
        self.progress.start(started * START_STEPS + each, self._title())
        planned = min(len(numbers), self.config["rounds"])
        waiting = WAITING * self.config["block_seconds"] * pairs * planned * self.config["sweeps"]
        self._pace = pace.Pace(self.config["threads"], self.config["cpus"], waiting, environments.home() / "cache")
        spare = seconds = 0.0  # of the spare rounds, and of the last round
        for number in numbers:
            is_spare, begun = number >= self.config["rounds"], monotonic()
            if is_spare and "minutes" not in self.config and self._pace.waited + spare + seconds > waiting:
                break
            if number != self._begun and self._too_late(seconds):
                self.out_of_time = not is_spare
                break
            if number != self._begun:
                if choose is None:
                    self._cases, self._only = self._undecided(number)
                else:
                    self._cases = list(choose(self._so_far()))
                if not self._cases:
                    break
                needed = [target for target in targets if self._pairs(target)]
                self.begin(number, needed)
                self._step("started", START_STEPS * (len(targets) - len(needed)))
            elif not self._side_by_side:
                self._pace.look()
            else:  # its workers were started before their modes were known
                self._go_ahead([target for target in targets if target in self._workers])
            order = schedule.start_order(self.config["seed"], number, targets)
            for target in order:
                goal = self._steps + PREPARE_STEPS * each_target[target]
                self._prepare(target)
                self._step(f"preparing {target}", goal - self._steps)  # what was left out
            self._side_by_side = False
            for target in order:
                self._pace.look()
                self._calibrate(target)
            waited = self._pace.waited
            self._play_blocks(number)
            if number < CEILINGS:
                self._measure_ceilings()
            if self.config["device"] == "cuda":
                self._measure_device()
            self.kill()
            waited = self._pace.waited - waited
            ended = {"waited_seconds": waited, "product_seconds": self._pace.best}
            self.record({"record": "round_end", "round": number} | ended)
            seconds = monotonic() - begun - waited
            spare += seconds * is_spare

    def _too_late(self, seconds: float) -> bool:
        """Whether another round as long as the last one would end after the time that the run may take."""
        limit: float = 60 * self.config.get("minutes", math.inf)
        return seconds > 0 and monotonic() - self._started + seconds > limit

    def _play_blocks(self, number: int) -> None:
        entries = {e["label"]: (e["target"], e["mode"]) for e in self.config["targets"]}
        sweeps = self._sweeps(number)
        order = schedule.blocks(self.config["seed"], number, sweeps, self._cases, list(entries))
        goal = self._steps + len(entries) * len(self.config["cases"]) * self.config["sweeps"]
        before, known = None, {}
        for sweep, case, label in order:
            target, mode = entries[label]
            if (target, mode, case) in self._ready:
                if self._pace and before != (sweep, case):
                    before, known = (sweep, case), {"product_seconds": self._pace.wait() * self._pace.best}
                timed = self._ask(target, mode, case, "block")
                if timed:
                    given = {"sweep": sweep} | known
                    self.record({"record": "block"} | self._row(target, mode, case) | given | timed)
                self._step(f"{case.partition('/')[0]} {label}", 1)
        self._step("done", goal - self._steps)  # more than was planned or, with rows that sat out, less

    def _measure_ceilings(self) -> None:
        """Let each worker that is left measure what the machine can do; what fails here is only recorded."""
        dtypes = sorted({case.rpartition("/")[2] for case in self.config["cases"]})
        settings = {"dtypes": dtypes, "device": self.config["device"], "threads": self.config["threads"]}
        for entry in self.config["targets"]:
            target, mode = entry["target"], entry["mode"]
            if target not in self._workers:
                continue
            self.progress.advance(f"{self._title()}, ceilings of {target}", 0)
            try:
                reply = self._workers[target].ask("ceilings", mode=mode, **settings)
            except process.WorkerDied as error:
                self._workers.pop(target).kill()
                reply = {"ok": False, "reason": f"the worker {error}"}
            if reply.pop("ok"):
                self.record({"record": "ceiling"} | self._row(target, mode, None) | reply)
            else:
                self.record(
                    {"record": "warning"} | self._row(target, mode, None) | {"reason": f"ceilings: {reply['reason']}"}
                )

    def _measure_device(self) -> None:
        """Let each row that is ready, and was not in a round before, be timed on the GPU itself.

        This comes last in a round: CUPTI, once loaded, would be in the way of blocks.
        """
        for target, mode, case in sorted(self._ready - self._asked):
            if target not in self._workers or (target, None, None) in self._asked:
                continue
            self.progress.advance(f"{self._title()}, device times of {target}", 0)
            self._asked.add((target, mode, case))
            try:
                reply = self._workers[target].ask("device", case=case, mode=mode)
            except process.WorkerDied as error:
                self._workers.pop(target).kill()
                reply = {"ok": False, "stage": "device", "reason": f"the worker {error}"}
            if reply.pop("ok"):
                self.record({"record": "device"} | self._row(target, mode, case) | reply)
                continue
            row = self._row(target, mode, case)
            if reply["stage"] == "unavailable":  # in its other cases as well, and one warning will do
                self._asked.add((target, None, None))
                row = self._row(target, None, None)
            self.record({"record": "warning"} | row | {"stage": "device", "reason": reply["reason"]})

    def _undecided(self, number: int) -> tuple[list[str], dict[str, list[str]]]:
        """Return the cases of a round, and for those in which not all take part the contestants that do.

        What decides is the rounds before it, never its own samples.
        """
        cases: list[str] = self.config["cases"]
        if self._writer is None or number < WHOLE:
            return cases, {}
        baseline = self.config["baseline"]
        wide: dict[str, list[str]] = {}
        for row in statistics.rows(self._so_far(), baseline):
            if row.ratio is not None and not row.ratio.half_width <= NARROW:
                wide.setdefault(row.case, [baseline]).append(row.contestant)
        return list(wide), wide  # rows come in the order of the cases

    def _sweeps(self, number: int) -> int:
        """Return the sweeps of a round: a late one has about as many blocks as a whole one, in fewer rows."""
        sweeps: int = self.config["sweeps"]
        if number < WHOLE:
            return sweeps
        everything = len(self.config["targets"]) * len(self.config["cases"])
        rows = sum(len(self._pairs(target)) for target in {entry["target"] for entry in self.config["targets"]})
        return min(MORE * sweeps, max(sweeps, round(sweeps * everything / max(1, rows))))

    def _so_far(self) -> runfile.Run:
        assert self._writer
        return runfile.read(self._writer.path)

    def _step(self, text: str, steps: int) -> None:
        self._steps += steps
        self.progress.advance(f"{self._title()}, {text}", steps)

    def _title(self) -> str:
        number, rounds = 1 + (self._begun or 0), self.config["rounds"]
        return f"round {number} of {rounds}" if number <= rounds else f"spare round {number - rounds}"

    def _row(self, target: str, mode: str | None, case: str | None) -> dict[str, Any]:
        row = {"round": self._begun, "target": target, "mode": mode, "case": case}
        return {name: value for name, value in row.items() if value is not None}

    # -------------------------------------------------------------------------------------------------- the workers

    def _spawn(self, target: str) -> bool:
        """Start a worker; return whether there is one."""
        if (target, None, None) in self._left_out:
            return False
        try:
            plain, setting = settings.split(target)
            python = environments.python(plain)
        except (ValueError, RuntimeError) as error:
            self._fail(target, None, None, "environment", str(error), left_out=True)
            return False
        cpus = self.config["cpus"][: setting.threads]
        self._workers[target] = process.Worker(python, self._environ(target), cpus)
        return True

    def _environ(self, target: str) -> dict[str, str]:
        chosen = self._settings(target)
        given = process.variables(chosen["threads"], chosen["device"])
        return environments.variables() | given | dict(settings.split(target)[1].variables)

    def _settings(self, target: str) -> dict[str, Any]:
        plain, setting = settings.split(target)
        chosen = {name: self.config[name] for name in ("device", "precision")}
        threads = setting.threads or self.config["threads"]
        return {
            "backend": environments.parse(plain)[0],
            "threads": threads,
            "awake": setting.awake,
            "pinned": setting.pinned,
        } | chosen

    def _start(self, target: str) -> dict[str, Any] | None:
        """Start a worker and let it load its backend; return what it answers, None if it was left out."""
        if target not in self._workers and not self._spawn(target):
            return None
        reply = self._ask(target, None, None, "load", **self._settings(target))
        if reply is None:
            return None
        versions = reply["describe"].get("versions")
        if self._versions.setdefault(target, versions) != versions:
            reason = f"its versions are {versions}, but in the rounds before they were {self._versions[target]}"
            self._fail(target, None, None, "setup", reason, left_out=True)
            return None
        given = {"variables": machine.relevant(self._environ(target)), "replacement": target in self._replaced}
        alone = {"alone": not self._side_by_side}
        self.record({"record": "worker"} | self._row(target, None, None) | reply | given | alone)
        return reply

    def _pairs(self, target: str) -> list[tuple[str, str]]:
        entries = [e for e in self.config["targets"] if e["target"] == target and e["mode"]]
        return [
            (entry["mode"], case)
            for entry in entries
            for case in self._cases
            if statistics.takes_part(self.config, case, entry["label"])
            and statistics.takes_part({"only": self._only}, case, entry["label"])
        ]

    def _wanted(self, target: str, mode: str, case: str) -> bool:
        return not {(target, mode, case), (target, None, None)} & (self._left_out | self._skipped)

    def _go_ahead(self, targets: Sequence[str], load: bool = False) -> None:
        """Let workers load, and build what takes long, as many at a time as there are CPUs; the longest goes first."""
        self._beside = {t for t in targets if self._alone_seconds.get(t, 0.0) >= LONG_SECONDS}  # known after one round

        def work(target: str) -> None:
            worker, begun = self._workers[target], monotonic()
            if load:
                worker.post("load", **self._settings(target))
            for mode, case in self._pairs(target) if target in self._beside else ():
                if self._wanted(target, mode, case):
                    worker.post("prepare", case=case, mode=mode, cache=self._cache)
            worker.collect()
            self._ahead_seconds[target] = monotonic() - begun

        pool = ThreadPoolExecutor(len(self.config["cpus"]))
        longest_first = sorted(targets, key=lambda target: -self._ahead_seconds.get(target, 0))
        for done in as_completed([pool.submit(work, target) for target in longest_first]):
            done.result()
            self.progress.advance(steps=0)
        pool.shutdown()

    def _prepare(self, target: str) -> None:
        """Build and check every case of a target that is not left out."""
        worker, seconds = self._workers.get(target), 0.0
        for mode, case in self._pairs(target):
            if self._workers.get(target) is not worker:
                return  # it died, and the worker in its place has prepared the rest
            if worker and self._wanted(target, mode, case):
                built = self._ask(target, mode, case, "prepare", cache=self._cache)
                if built:
                    self._built[target, mode, case] = built | {"alone": target not in self._beside}
                    seconds += built["build_seconds"] + built["first_call_seconds"]
            if target not in self._replaced:
                self._step(f"preparing {target}", PREPARE_STEPS)
        if target not in self._beside:
            self._alone_seconds[target] = seconds

    def _calibrate(self, target: str) -> None:
        """Warm up the cases of a target that have been checked, and record them."""
        worker = self._workers.get(target)
        for pair in self._pairs(target):
            if self._workers.get(target) is not worker:
                return
            built = self._built.pop((target, *pair), None)
            mode, case = pair
            if built:
                seconds = self.config["block_seconds"]
                found = self._placements.get((target, mode, case))
                warmed = self._ask(target, mode, case, "calibrate", block_seconds=seconds, placement=found)
                if warmed:
                    self._ready.add((target, mode, case))
                    self._placements.setdefault((target, mode, case), warmed["placement"])
                    self.record({"record": "build"} | self._row(target, mode, case) | built | warmed)

    def _ask(
        self, target: str, mode: str | None, case: str | None, command: str, **request: Any
    ) -> dict[str, Any] | None:
        """Ask a worker; record a failure and return None if it fails or dies, in which case another takes its place."""
        if case is not None:
            request = {"case": case, "mode": mode} | request
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
        self._built = {pair: built for pair, built in self._built.items() if pair[0] != target}
        if target in self._replaced or (target, None, None) in self._left_out:
            return
        self._replaced.add(target)
        if self._start(target):
            self._prepare(target)
            if not self._side_by_side:
                self._calibrate(target)

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
