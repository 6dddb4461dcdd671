"""asv's environment type ``backends``: each value of the parameter ``backend`` is measured in its own environment.

There is one asv environment; it holds a checkout of the commit, which reaches the benchmarks by PYTHONPATH, so nothing
is built or installed for a commit. The interpreters are those of the environments that ``shim env`` makes. A target
without one is n/a at once: no process is started to find that out.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
from pathlib import Path

from asv import environment, util
from asv.console import log

from shim import environments
from shim.measure import process

VERSIONS = "targets.jsonl"  # in the folder of the results; asv itself reads only files ending in .json


class Backends(environment.Environment):
    """A checkout of one commit and the environments of all targets."""

    tool_name = "backends"
    benchmarks: dict[str, dict] = {}  # noqa: RUF012 - as asv's discovery, once for all environments

    def __init__(self, conf, python, requirements, tagged_env_vars):
        running = ".".join(platform.python_version_tuple()[:2])
        if python != running:
            log.warning(f"shim's environments have the Python that runs asv, {running}; there is none with {python}")
            raise environment.EnvironmentUnavailable(f"no environments with Python {python}")
        self._requirements = requirements  # the base class reads it before it sets it
        super().__init__(conf, python, requirements, tagged_env_vars)
        self._results_dir = Path(conf.results_dir).absolute()
        self._commit = None
        self._interpreters = {}

    @classmethod
    def matches(cls, python):
        return True

    def check_presence(self):
        return Path(self._path).is_dir()

    def _setup(self):
        package = Path(self._path) / "path"
        package.mkdir(parents=True)
        (package / "shim").symlink_to("../project/shim", target_is_directory=True)

    def install_project(self, conf, repo, commit_hash):
        """Check out the commit: it is in use from then on."""
        self._commit = commit_hash
        self.checkout_project(repo, commit_hash)

    def run(self, args, **kwargs):
        """Run asv's own script for the benchmarks, in the environment of the target that it is about."""
        command = args[1]
        if command == "run_server":
            raise util.UserError('the environments "backends" need the launch method "spawn"')
        if command != "run":
            python = self._any_interpreter()
        else:
            result_file = args[6]
            target, left_out = self._parameters(args[3])
            python = None if left_out else self._interpreter(target) if target else self._any_interpreter()
            if python is None:
                Path(result_file).write_text("NaN", encoding="utf-8")  # what asv takes for n/a
                return "", "", 0
        log.debug(f"Running '{' '.join(args)}' with {python}")
        kwargs["env"] = self._variables(kwargs.pop("env", {}))
        kwargs["timeout"] = kwargs.get("timeout") or self._install_timeout
        output = util.check_output([str(python), *args], **kwargs)
        if command == "discover":
            found = json.loads(Path(args[3]).read_text(encoding="utf-8"))
            Backends.benchmarks = {benchmark["name"]: benchmark for benchmark in found}
        return output

    def _parameters(self, benchmark_id):
        """Return the target of ``name-index``, None if the benchmark has none, and whether its profile skips it."""
        name, _, index = benchmark_id.partition("-")
        benchmark = self.benchmarks[name]
        if not index:
            return None, False
        values = next(itertools.islice(itertools.product(*benchmark["params"]), int(index), None))
        chosen = {key: value.strip("'") for key, value in zip(benchmark["param_names"], values, strict=True)}
        return chosen.get("backend"), chosen.get("case") in benchmark.get("left_out", ())

    def _interpreter(self, target):
        """Return a target's interpreter, or None with a notice, given once."""
        if target == "null":
            return self._any_interpreter()  # it has no framework
        if target not in self._interpreters:
            try:
                self._interpreters[target] = environments.python(target.partition(":")[0])
                self._note_versions(target)
            except (environments.EnvironmentMissing, ValueError) as error:
                log.warning(f"{target} is n/a: {error}")
                self._interpreters[target] = None
        return self._interpreters[target]

    def _any_interpreter(self):
        ready = environments.installed()
        if not ready:
            raise util.UserError("there is no environment to measure in; make one, for example with: shim env numpy")
        return environments.python(ready[0])

    def _variables(self, given):
        """Return the variables of ``shim bench``'s workers, but with the commit's ``shim`` to import."""
        threads = len(os.sched_getaffinity(0))
        path = str(Path(self._path) / "path")
        return {
            **given,
            **environments.variables(),
            **process.variables(threads, "cpu"),
            **self.env_vars,
            **self._global_env_vars,
            "PYTHONPATH": path,
            "ASV_PYTHONPATH": path,  # asv's script takes PYTHONPATH off again unless it is here too
        }

    def _note_versions(self, target):
        """Keep which version is measured, for the page of the comparison: asv's results have no place for it."""
        found = environments.describe(target.partition(":")[0])
        entry = {"commit": self._commit, "target": target, "version": found.version, "python": found.python}
        self._results_dir.mkdir(parents=True, exist_ok=True)
        with (self._results_dir / VERSIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
