"""The command line. Each command is a thin layer over one module; frameworks are loaded in their own processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

import shim

EPILOGUES = {
    "backends": "Examples:\n\n\b\n  shim backends\n  shim backends --json",
    "env": "Examples:\n\n\b\n  shim env                        what is there\n"
    "  shim env torch jax              create or update two environments\n"
    "  shim env tensorflow@2.16.2      another version beside the pinned one\n"
    "  shim env --python /usr/bin/python3 cupy torch jax    take what is installed there\n"
    "  shim env --remove torch",
    "check": "Examples:\n\n\b\n  shim check                      every installed backend\n"
    "  shim check torch --op lstm\n  shim check cupy torch --device cuda\n  shim check --json > parity.json",
    "bench": "Examples:\n\n\b\n  shim bench --set smoke --quick\n"
    "  shim bench --model mnist_mlp --model imdb_bidirectional_lstm\n"
    "  shim bench --backends torch,jax --modes all\n"
    "  shim bench --backends cupy,torch --device cuda\n"
    "  shim bench --case lstm/forward/N32-T100-I128-H64/float32\n"
    "  shim bench --backends numpy,numpy@1.26.4\n"
    "  shim bench --resume .shim/runs/20260101-120000-article.jsonl",
    "report": "Examples:\n\n\b\n  shim report .shim/runs/20260101-120000-article.jsonl\n"
    "  shim report RUN --baseline torch --output page.html\n  shim report RUN --json",
    "article": "Examples:\n\n\b\n  shim article --scale 0.02 --epochs 3\n"
    "  shim article --backends tensorflow,cntk,torch --models mnist_mlp,mnist_cnn\n"
    "  shim article --repeats 5 --output runs/article --json\n"
    "  shim article --resume runs/article",
    "site": "Examples:\n\n\b\n  shim site                       the newest runs in .shim/runs\n"
    "  shim site RUN.jsonl MAP.jsonl ARTICLE-FOLDER --output public\n"
    "  asv publish                     writes these pages too, in .asv/html/shim",
    "explain": "Examples:\n\n\b\n  shim explain imdb_bidirectional_lstm torch tensorflow\n"
    "  shim explain mnist_mlp torch:compile torch --rounds 6\n"
    "  shim explain imdb_fasttext-ngrams=1 jax torch --json\n"
    "  shim explain --run .shim/runs/20260101-120000-mnist_mlp.jsonl",
    "causes": "Examples:\n\n\b\n  shim causes --list                 what is suspected, and what was predicted\n"
    "  shim causes                        test all, about five minutes\n"
    "  shim causes numpy-threads tensorflow-call --rounds 12\n"
    "  shim causes --run .shim/runs/20260101-120000-causes.jsonl --json",
    "map": "Examples:\n\n\b\n  shim map lstm\n"
    "  shim map dense --backends numpy,torch --budget 120\n"
    "  shim map conv2d --direction forward --json\n"
    "  shim map lstm --shapes deepbench --direction forward\n"
    "  shim map --run .shim/runs/20260101-120000-map-lstm.jsonl",
    "profile": "Examples:\n\n\b\n  shim profile mnist_mlp --backend torch\n"
    "  shim profile lstm/forward_backward/N32-T100-I128-H64/float32 -b tensorflow --mode xla\n"
    "  shim profile mnist_mlp --backend jax --trace step.json    open it at https://ui.perfetto.dev",
    "data": "Examples:\n\n\b\n  shim data                       which files are used, and their checksums\n"
    "  shim data --fetch mnist cifar10\n"
    "  shim data --json\n"
    "  SHIM_DATA=~/data shim data      files from a folder of your own",
    "train": "Examples:\n\n\b\n  shim train mnist_mlp\n"
    "  shim train imdb_bidirectional_lstm --backends tensorflow --epochs 4\n"
    "  shim train imdb_fasttext-ngrams=1    a variant of a model\n"
    "  shim train --resume .shim/runs/20260101-120000-mnist_mlp.jsonl\n"
    "  SHIM_DATA=~/data shim train mnist_mlp --backends torch,jax --json",
}


class Progress:
    """A progress bar on standard error; silent where that is no terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("[progress.description]{task.description}", table_column=None),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: Any = None

    def start(self, total: int, description: str = "") -> None:
        from rich.markup import escape

        self._bar.start()
        self._task = self._bar.add_task(escape(description), total=total)

    def advance(self, text: str | None = None, steps: int = 1) -> None:
        from rich.markup import escape

        if self._task is not None:
            self._bar.update(self._task, advance=steps, description=escape(text) if text else None)

    def note(self, text: str) -> None:
        """Leave a line above the bar, also where there is no terminal."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        self._bar.stop()
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None


class Group(click.Group):
    """Commands that end in one line and status 1, not in a traceback, when the user can mend what went wrong."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.exceptions.Exit, click.Abort):  # how --help ends; they are RuntimeErrors too
            raise
        except KeyboardInterrupt:
            raise click.ClickException("interrupted") from None
        except (ValueError, RuntimeError, OSError) as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
                raise
            raise click.ClickException(str(error) or type(error).__name__) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(shim.__version__, prog_name="shim")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Find out which deep-learning backend is fastest for an op or a model on this machine, and why.

    Start with 'shim env torch jax', then 'shim bench --set smoke --quick'.
    """


def command(function: Callable[..., None]) -> click.Command:
    return main.command(epilog=EPILOGUES[function.__name__])(function)


def _split(values: Iterable[str]) -> list[str]:
    return [part for value in values for part in value.split(",") if part]


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=False)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _targets(chosen: Iterable[str], device: str = "cpu") -> list[str]:
    """Return the targets asked for, or all for a device that are installed; the error names what installs one."""
    from shim import environments, listing, settings

    targets = _split(chosen)
    for target in targets:
        environments.python(settings.split(target.partition(":")[0])[0])
    if targets:
        return targets
    there = (target for target in environments.installed() if "@" not in target and target != "null")
    targets = [target for target in there if device in listing.devices(target)]
    if not targets:
        known = {"cpu": "numpy tensorflow jax torch", "cuda": "cupy jax torch"}[device]
        raise RuntimeError(f"no backend is installed yet; run 'shim env {known}'")
    return targets


backends_option = click.option(
    "--backends", "-b", multiple=True, metavar="NAMES", help="Backends, comma-separated; default: all installed."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
baseline_option = click.option(
    "--baseline", metavar="NAME", help="What ratios compare with; default: torch, else tensorflow."
)

device_option = click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where the backends compute."
)
threads_option = click.option("--threads", type=click.IntRange(1), help="Threads for each backend; default: all cores.")
seed_option = click.option("--seed", default=0, show_default=True, help="Seed of the order of blocks.")
block_option = click.option("--block-seconds", type=click.FloatRange(0, min_open=True), help="Length of a block.")
output_option = click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The run file; default: .shim/runs/."
)


def run_option(text: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return the option that names a run file to show instead of measuring one."""
    return click.option("--run", "run_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help=text)


@command
@json_option
def backends(as_json: bool) -> None:
    """List the backends: what is installed, versions, devices and modes."""
    from shim import listing

    rows = listing.backends()
    if as_json:
        _print_json(rows)
        return
    from rich.markup import escape
    from rich.table import Table

    table = Table("backend", "state", "versions", "devices", "modes", "found")
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        found = row["device"] or row["reason"] or ""
        cells = (row["target"], row["state"], versions, ", ".join(row["devices"]), ", ".join(row["modes"]), found)
        table.add_row(*map(escape, cells))
    _console().print(table)


@command
@click.argument("targets", nargs=-1)
@click.option("--recreate", is_flag=True, help="Build anew even what is up to date.")
@click.option("--remove", is_flag=True, help="Delete the environments named.")
@click.option(
    "--python",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Install nothing: run this Python, which has the frameworks already, as in a container.",
)
@json_option
def env(targets: tuple[str, ...], recreate: bool, remove: bool, python: Path | None, as_json: bool) -> None:
    """Create environments, one a backend or a version of it; without names, list them.

    A backend that cannot be installed is reported with its reason and the others go on.
    """
    from shim import environments, listing

    chosen = _split(targets)
    if remove:
        for target in chosen:
            environments.remove(target)
    elif chosen:
        failed = environments.ensure(chosen, progress=Progress(), recreate=recreate, python=python)
        reasons = [f"{target}: {reason}" for target, reason in failed.items() if reason]
        if reasons and not as_json:
            raise click.ClickException("could not be installed:\n  " + "\n  ".join(reasons))
    rows = listing.table()
    if as_json:
        _print_json(rows)
    else:
        from rich.markup import escape
        from rich.table import Table

        table = Table("target", "state", "versions", "size", "reason")
        for row in rows:
            cells = (row["target"], row["state"], row["versions"], row["size"], row["reason"] or "")
            table.add_row(*map(escape, cells))
        _console().print(table)


@command
@click.argument("targets", nargs=-1)
@click.option("--op", "ops", multiple=True, help="Only this op; may be repeated.")
@click.option("--mode", "modes", multiple=True, help="Only this mode; may be repeated.")
@device_option
@json_option
def check(targets: tuple[str, ...], ops: tuple[str, ...], modes: tuple[str, ...], device: str, as_json: bool) -> None:
    """Compare every op of the installed backends with the contract, forward and every gradient."""
    from shim import check as checking
    from shim import contract

    for name in ops:
        contract.op(name)
    results = {}
    for target in _targets(targets, device):
        progress, outcomes = Progress(), []
        try:
            for outcome in checking.check(target, modes, ops, progress, device):
                outcomes.append(outcome)
        finally:
            progress.stop()
        results[target] = checking.summary(outcomes)
        if not as_json:
            _print_check(target, results[target])
    if as_json:
        _print_json(results)
    if any(result["failed"] for result in results.values()):
        sys.exit(1)


def _print_check(target: str, result: dict[str, Any]) -> None:
    worst = f", worst error {result['worst']:.2f} of the tolerance" if result["worst"] is not None else ""
    beyond = f", {result['unsupported']} cannot be done" if result["unsupported"] else ""
    click.echo(f"{target}: {result['passed']} passed, {result['failed']} failed{beyond}{worst}")
    for reason, count in result["reasons"].items():
        click.echo(f"  {count} of them: {reason}")
    for failure in result["failures"]:
        click.echo(f"  {failure['mode']} {failure['case']}: {failure['error']}")


@command
@click.option("--set", "case_set", default="article", show_default=True, help="article, models, scaled or smoke.")
@click.option("--model", "models", multiple=True, help="Only the layers of this model; may be repeated.")
@click.option("--case", "ids", multiple=True, help="A case by its id instead of a set; may be repeated.")
@backends_option
@click.option("--modes", type=click.Choice(["default", "all"]), default="default", show_default=True)
@click.option("--quick", is_flag=True, help="Few samples, to see that everything works; too few for a claim.")
@click.option("--rounds", type=click.IntRange(1), help="Fresh processes for each backend, at most.")
@click.option("--sweeps", type=click.IntRange(1), help="Blocks of each case in each round.")
@block_option
@device_option
@threads_option
@seed_option
@click.option("--dtype", default="float32", show_default=True)
@baseline_option
@output_option
@click.option("--resume", type=click.Path(exists=True, path_type=Path), help="Go on with an interrupted run.")
@json_option
def bench(
    case_set: str,
    models: tuple[str, ...],
    ids: tuple[str, ...],
    backends: tuple[str, ...],
    modes: str,
    quick: bool,
    rounds: int | None,
    sweeps: int | None,
    block_seconds: float | None,
    device: str,
    threads: int | None,
    seed: int,
    dtype: str,
    baseline: str | None,
    output: Path | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Compare backends side by side on this machine, parity first, and write a report."""
    from shim import cases
    from shim.measure import bench as benching

    if resume:
        run, path = benching.resume(resume, progress=Progress()), resume
    else:
        chosen = [cases.parse(id) for id in ids] or cases.case_set(case_set, models, dtype)
        path = output or _run_path("case" if ids else case_set)
        run = benching.run(
            path,
            targets=_targets(backends, device),
            cases=chosen,
            modes=modes,
            device=device,
            quick=quick,
            seed=seed,
            threads=threads,
            baseline=baseline,
            progress=Progress(),
            rounds=rounds,
            sweeps=sweeps,
            block_seconds=block_seconds,
        )
    _show(run, path, baseline, path.with_suffix(".html"), as_json)
    if any(failure["stage"] != "unsupported" for failure in run.failures):
        sys.exit(1)


def _run_path(name: str) -> Path:
    from datetime import datetime

    from shim import environments

    return environments.home() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{name}.jsonl"


def _show(run: Any, path: Path, baseline: str | None, page_path: Path, as_json: bool) -> None:
    from shim.report import page, table

    page_path = page.write(run, page_path, baseline)
    if as_json:
        _print_json(table.as_json(run, baseline))
    else:
        table.print_run(run, _console(), baseline)
        _tell(path, page_path)


def _tell(path: Path, page_path: Path) -> None:
    click.echo(f"run file  {path}\nreport    {page_path}")


@command
@click.argument("run", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@baseline_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The page; default: beside the run file.")
@json_option
def report(run: Path, baseline: str | None, output: Path | None, as_json: bool) -> None:
    """Print a run file as a table and write it as a page that opens without internet."""
    from shim.measure import runfile

    _show(runfile.read(run), run, baseline, output or run.with_suffix(".html"), as_json)


@command
@click.argument("runs", nargs=-1, metavar="[RUN]...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The folder; default: .asv/html/shim, else .shim/site."
)
@baseline_option
@json_option
def site(runs: tuple[Path, ...], output: Path | None, baseline: str | None, as_json: bool) -> None:
    """Write runs as one site that needs no network: ratios, win maps, explanations, the article, and asv's history.

    Each RUN is a run file or the folder of a run of 'shim article'; by default the newest of each kind and name.
    The folder is written anew. Where 'asv publish' has written its pages, the two are joined.
    """
    from shim import environments
    from shim.report import history, shown

    given = [shown.show(run, baseline) for run in runs]
    found, problems = (given, []) if runs else shown.newest(environments.home() / "runs", baseline)
    known = sorted({name for one in found if one.summary for name in one.summary.contestants})
    if baseline and known and baseline not in known:
        raise ValueError(f"no run has {baseline!r}; they have: {', '.join(known)}")
    index = history.write(output, found, problems, Progress())
    if as_json:
        _print_json({"index": str(index), "pages": sorted(str(path) for path in index.parent.glob("*.html"))})
    else:
        click.echo(f"site      {index}")


@command
@click.argument("model", required=False)
@click.argument("first", required=False)
@click.argument("second", required=False)
@click.option("--batch", type=click.IntRange(1), help="Batch size; default: that of the article.")
@click.option("--rounds", type=click.IntRange(1), help="Fresh processes for each backend.")
@click.option("--sweeps", type=click.IntRange(1), help="Blocks of each part in each round.")
@block_option
@threads_option
@output_option
@run_option("Explain a run that was measured before.")
@json_option
def explain(
    model: str | None,
    first: str | None,
    second: str | None,
    batch: int | None,
    rounds: int | None,
    sweeps: int | None,
    block_seconds: float | None,
    threads: int | None,
    output: Path | None,
    run_file: Path | None,
    as_json: bool,
) -> None:
    """Say why one backend trains MODEL faster than another: its ops, its optimizer, the call, and what remains.

    FIRST and SECOND are backends, also with a version or a mode: torch:compile.
    """
    from shim import models, statistics
    from shim.explain import attribution
    from shim.measure import bench as benching
    from shim.measure import runfile
    from shim.report import explanation

    if run_file:
        if model:
            raise click.UsageError("--run takes model and backends from the run file")
        run, path = runfile.read(run_file), run_file
    else:
        if model is None or first is None or second is None:
            raise click.UsageError(f"name a model and two backends; the models are: {', '.join(models.names())}")
        if first == second:
            raise click.UsageError("name two different backends")
        chosen = models.load(model)
        targets = _targets([first, second])
        path = output or _run_path(chosen.label)
        run = benching.run(
            path,
            targets=targets,
            cases=attribution.wanted(chosen, batch),
            baseline=first,
            threads=threads,
            rounds=rounds or attribution.ROUNDS,
            sweeps=sweeps,
            block_seconds=block_seconds,
            progress=Progress(),
            choose=attribution.all_parts,
        )
    found = attribution.explain(run, *list(statistics.labels(run).values())[:2])
    page_path = explanation.write(run, found, path.with_suffix(".html"))
    if as_json:
        _print_json(explanation.as_json(found))
    else:
        explanation.print_explanation(found, _console())
        _tell(path, page_path)


@command
@click.argument("names", nargs=-1)
@click.option("--list", "listed", is_flag=True, help="Only list the suspected causes with their predictions.")
@click.option("--rounds", type=click.IntRange(1), help="Fresh processes for each contestant.")
@click.option("--sweeps", type=click.IntRange(1), help="Blocks of each row in each round.")
@block_option
@threads_option
@output_option
@run_option("Judge a run that was measured before.")
@json_option
def causes(
    names: tuple[str, ...],
    listed: bool,
    rounds: int | None,
    sweeps: int | None,
    block_seconds: float | None,
    threads: int | None,
    output: Path | None,
    run_file: Path | None,
    as_json: bool,
) -> None:
    """Test suspected causes of gaps between backends: switch one thing, and compare with what was predicted.

    A cause is confirmed, refuted or undecided. Without NAMES all are tested whose backends are installed.
    """
    from shim import environments
    from shim.explain import attribution, hypotheses
    from shim.explain import causes as testing
    from shim.measure import bench as benching
    from shim.measure import runfile
    from shim.report import causes as showing

    chosen = testing.choose(_split(names), hypotheses.CAUSES)
    if listed:
        if as_json:
            _print_json(showing.list_as_json(chosen))
        else:
            showing.print_list(chosen, _console())
        return
    if run_file:
        if names:
            raise click.UsageError("--run takes the causes from the run file")
        run, path = runfile.read(run_file), run_file
    else:
        if names:
            for target in dict.fromkeys(target for cause in chosen for target in cause.targets):
                environments.python(target)
        there = set(environments.installed())
        missing = {cause.name: [target for target in cause.targets if target not in there] for cause in chosen}
        for name, targets in missing.items():
            if targets:
                click.echo(f"left out: {name}, which needs: shim env {' '.join(targets)}", err=True)
        path = output or _run_path("causes")
        run = benching.run(
            path,
            **testing.plan([cause for cause in chosen if not missing[cause.name]]),
            threads=threads,
            rounds=rounds or testing.ROUNDS,
            sweeps=sweeps or testing.SWEEPS,
            block_seconds=block_seconds,
            progress=Progress(),
            choose=attribution.all_parts,
        )
    found = testing.judge_all(run, hypotheses.CAUSES)
    page_path = showing.write(run, found, path.with_suffix(".html"))
    if as_json:
        _print_json(showing.as_json(run, found))
    else:
        showing.print_findings(found, _console())
        _tell(path, page_path)


@main.command("map", epilog=EPILOGUES["map"])
@click.argument("op", required=False)
@click.option("--shapes", metavar="NAME", help="Published shapes instead of the grid: deepbench, or ptb of lstm.")
@backends_option
@click.option(
    "--direction", type=click.Choice(["forward", "forward_backward"]), default="forward_backward", show_default=True
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=210.0,
    show_default=True,
    help="Seconds; the first three rounds of the whole map are made in any case.",
)
@threads_option
@seed_option
@output_option
@run_option("Show a map that was measured before.")
@json_option
def win_map(
    op: str | None,
    shapes: str | None,
    backends: tuple[str, ...],
    direction: str,
    budget: float,
    threads: int | None,
    seed: int,
    output: Path | None,
    run_file: Path | None,
    as_json: bool,
) -> None:
    """Map which backend wins at which shape of OP: dense, conv2d, lstm or embedding_average.

    Cells that are undecided, or lie where the winner changes, get more samples until the budget is used up.
    """
    from shim.explain import winmap as mapping
    from shim.measure import bench as benching
    from shim.measure import runfile
    from shim.report import winmap

    if run_file:
        if op or shapes:
            raise click.UsageError("--run takes the op and its shapes from the run file")
        run, path = runfile.read(run_file), run_file
    else:
        if op is None:
            raise click.UsageError(f"name an op: {', '.join(mapping.GRIDS)}")
        grid = mapping.grid_of(op, shapes)
        path = output or _run_path("-".join(filter(None, ("map", op, shapes))))
        run = benching.run(
            path,
            targets=_targets(backends),
            cases=grid.cells(direction).values(),
            threads=threads,
            seed=seed,
            progress=Progress(),
            choose=mapping.Chooser(grid, budget),
            **mapping.SETTINGS,
        )
    found = mapping.read(run)
    page_path = winmap.write(run, found, path.with_suffix(".html"))
    if as_json:
        _print_json(winmap.as_json(found))
    else:
        winmap.print_map(found, _console())
        _tell(path, page_path)


@command
@click.argument("case", metavar="CASE|MODEL")
@click.option("--backend", "-b", required=True, metavar="NAME", help="A backend, or a version of it.")
@click.option("--mode", help="A mode of the backend instead of its default.")
@click.option("--threads", type=click.IntRange(1), help="Threads of the backend; default: all cores.")
@click.option("--steps", type=click.IntRange(1, 1000), help="Profiled steps; default: as many as take 0.1 s, 3 to 50.")
@click.option(
    "--trace", type=click.Path(path_type=Path), help="Write the events in Chrome's trace format, for Perfetto."
)
@json_option
def profile(
    case: str,
    backend: str,
    mode: str | None,
    threads: int | None,
    steps: int | None,
    trace: Path | None,
    as_json: bool,
) -> None:
    """Show which kernels a case, or a model's training step, spends its time in, by the framework's own profiler.

    The times of the kernels stand beside the time of the same step without a profiler.
    """
    from shim import trace as tracing
    from shim.trace import show

    found = tracing.profile(case, backend, Progress(), mode, steps, trace, threads)
    if as_json:
        _print_json(found)
        return
    show.print_profile(found, _console())
    if trace:
        click.echo(f"trace  {trace}")


@command
@click.argument("names", nargs=-1)
@click.option("--fetch", is_flag=True, help="Download what is missing or damaged; without names, all data sets.")
@json_option
def data(names: tuple[str, ...], fetch: bool, as_json: bool) -> None:
    """List the data sets of the models: where each comes from, its size and checksum."""
    from shim import data as datasets

    chosen = _split(names) or list(datasets.names())
    for name in chosen:
        datasets.check_name(name)
    missing = [name for name in chosen if fetch and datasets.fetch(name, Progress()) is None]
    rows = [row for row in datasets.table() if row["name"] in chosen]
    if as_json:
        _print_json(rows)
    else:
        from rich.markup import escape
        from rich.table import Table

        table = Table("data", "source", "size", "sha256", "path")
        for row in rows:
            sha = row["sha256"][:12] + ("" if row["known"] else " (not Keras' own file)")
            size = f"{row['bytes'] / 1e6:.1f} MB"
            table.add_row(*map(escape, (row["name"], row["source"], size, sha, row["path"])))
        _console().print(table)
    if missing:
        sys.exit(1)


@command
@click.argument("model", required=False)
@backends_option
@click.option("--epochs", type=click.IntRange(1), help="Default: as many as the article.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights, batches and dropout.")
@click.option("--mode", help="A mode of the backend instead of its default.")
@click.option("--limit", type=click.IntRange(1), help="Train on the first samples only.")
@output_option
@click.option("--resume", type=click.Path(exists=True, path_type=Path), help="Go on with an interrupted training.")
@json_option
def train(
    model: str | None,
    backends: tuple[str, ...],
    epochs: int | None,
    seed: int,
    mode: str | None,
    limit: int | None,
    output: Path | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Train a model on real data, on each backend from the same weights and batches.

    Each epoch ends with a checkpoint beside the run file, so that --resume goes on with the same losses.
    """
    from shim import models
    from shim import train as training

    if resume:
        if model or backends or epochs or seed or mode or limit or output:
            raise click.UsageError("--resume takes everything else from the run file")
        run, path = training.resume(resume, progress=Progress()), resume
    else:
        if model is None:
            raise click.UsageError(f"name a model: {', '.join(models.names())}")
        path = output or _run_path(models.load(model).label)
        run = training.train(
            model,
            _targets(backends),
            epochs=epochs,
            seed=seed,
            mode=mode,
            limit=limit,
            path=path,
            progress=Progress(),
        )
    _show(run, path, None, path.with_suffix(".html"), as_json)
    excused = None if backends else "unsupported"  # of all that are installed, some may be for other work
    if any(failure["stage"] != excused for failure in run.failures):
        sys.exit(1)


@command
@backends_option
@click.option("--models", "-m", "chosen", multiple=True, metavar="NAMES", help="Comma-separated; default: all seven.")
@click.option("--scale", default=1.0, show_default=True, help="Share of the samples to train and to test on.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Independent trainings of each.")
@click.option("--epochs", type=click.IntRange(1), help="Default: as many as the article, for each model.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first repeat, the next one has the next.")
@threads_option
@click.option("--baseline", metavar="NAME", help="What ratios compare with; default: tensorflow, as in the article.")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The folder of the run; default: in .shim/runs/.")
@click.option("--resume", type=click.Path(exists=True, path_type=Path), help="Go on with an interrupted run's folder.")
@json_option
def article(
    backends: tuple[str, ...],
    chosen: tuple[str, ...],
    scale: float,
    repeats: int,
    epochs: int | None,
    seed: int,
    threads: int | None,
    baseline: str | None,
    output: Path | None,
    resume: Path | None,
    as_json: bool,
) -> None:
    """Do the article's benchmark again: train the seven models on every backend, and set it beside 2017's figures.

    Each training is a process of its own; nothing is lost when the run is interrupted. It ends with a table and a page.
    At scale 1 this takes days on a small machine, at 0.02 minutes to hours.
    """
    from shim import article as benchmark
    from shim.report import article as summaries
    from shim.report import article_page

    if resume:
        if backends or chosen or epochs or threads or output:
            raise click.UsageError("--resume takes everything else from the folder")
        found = benchmark.resume(resume, Progress())
    else:
        found = benchmark.run(
            output or _run_path("article").with_suffix(""),
            targets=_targets(backends),
            chosen=_split(chosen),
            scale=scale,
            repeats=repeats,
            epochs=epochs,
            seed=seed,
            threads=threads,
            progress=Progress(),
        )
    page = article_page.write(found, found.folder / "article.html", baseline)
    summary = summaries.summary(found, baseline)
    if as_json:
        _print_json(summaries.as_json(summary))
    else:
        summaries.print_summary(summary, _console())
        click.echo(f"folder    {found.folder}\nreport    {page}")
    if summary.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
