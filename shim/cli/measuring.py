"""Commands that measure and show: comparisons, profiles, reports, the site."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shim.cli.common import (
    Progress,
    backends_option,
    baseline_option,
    block_option,
    chosen_targets,
    command,
    console,
    device_option,
    json_option,
    output_option,
    print_json,
    run_path,
    seed_option,
    show_run,
    threads_option,
)


@command(
    "bench",
    "shim bench --set smoke --quick",
    "shim bench --model mnist_mlp --model imdb_bidirectional_lstm",
    "shim bench --backends torch,jax --modes all",
    "shim bench --backends cupy,torch --device cuda",
    "shim bench --case lstm/forward/N32-T100-I128-H64/float32",
    "shim bench --backends numpy,numpy@1.26.4",
    "shim bench --set models --minutes 30",
    "shim bench --resume .shim/runs/20260101-120000-article.jsonl",
)
@click.option("--set", "case_set", default="article", show_default=True, help="article, models, scaled or smoke.")
@click.option("--model", "models", multiple=True, help="Only the layers of this model; may be repeated.")
@click.option("--case", "ids", multiple=True, help="A case by its id instead of a set; may be repeated.")
@backends_option
@click.option("--modes", type=click.Choice(["default", "all"]), default="default", show_default=True)
@click.option("--quick", is_flag=True, help="Few samples, to see that everything works; too few for a claim.")
@click.option("--rounds", type=click.IntRange(1), help="Fresh processes for each backend, at most.")
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    help="Begin no round that would end later; with time left, up to two more.",
)
@click.option("--sweeps", type=click.IntRange(1), help="Blocks of each case in each round.")
@block_option
@device_option
@threads_option
@seed_option
@click.option("--dtype", default="float32", show_default=True, help="Also float64, float16 or bfloat16.")
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
    minutes: float | None,
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
        path = output or run_path("case" if ids else case_set)
        run = benching.run(
            path,
            targets=chosen_targets(backends, device),
            cases=chosen,
            modes=modes,
            device=device,
            quick=quick,
            seed=seed,
            threads=threads,
            baseline=baseline,
            progress=Progress(),
            rounds=rounds,
            minutes=minutes,
            sweeps=sweeps,
            block_seconds=block_seconds,
        )
    show_run(run, path, baseline, path.with_suffix(".html"), as_json)
    if any(failure["stage"] != "unsupported" for failure in run.failures):
        sys.exit(1)


@command(
    "report",
    "shim report .shim/runs/20260101-120000-article.jsonl",
    "shim report RUN --baseline torch --output page.html",
    "shim report RUN --json",
)
@click.argument("run", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@baseline_option
@click.option("--output", "-o", type=click.Path(path_type=Path), help="The page; default: beside the run file.")
@json_option
def report(run: Path, baseline: str | None, output: Path | None, as_json: bool) -> None:
    """Print a run file as a table and write it as a page that opens without internet."""
    from shim.measure import runfile

    show_run(runfile.read(run), run, baseline, output or run.with_suffix(".html"), as_json)


@command(
    "profile",
    "shim profile mnist_mlp --backend torch",
    "shim profile lstm/forward_backward/N32-T100-I128-H64/float32 -b tensorflow --mode xla",
    "shim profile mnist_mlp --backend jax --trace step.json    open it at https://ui.perfetto.dev",
)
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
        print_json(found)
        return
    show.print_profile(found, console())
    if trace:
        click.echo(f"trace  {trace}")


@command(
    "site",
    "shim site                       the newest runs in .shim/runs",
    "shim site RUN.jsonl MAP.jsonl ARTICLE-FOLDER --output public",
    "asv publish                     writes these pages too, in .asv/html/shim",
)
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
        print_json({"index": str(index), "pages": sorted(str(path) for path in index.parent.glob("*.html"))})
    else:
        click.echo(f"site      {index}")
