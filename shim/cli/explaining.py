"""Commands that say why: attributions, causes, win maps."""

from __future__ import annotations

from pathlib import Path

import click

from shim.cli.common import (
    Progress,
    backends_option,
    block_option,
    chosen_targets,
    command,
    console,
    json_option,
    output_option,
    print_json,
    run_option,
    run_path,
    seed_option,
    split,
    tell_paths,
    threads_option,
)


@command(
    "explain",
    "shim explain imdb_bidirectional_lstm torch tensorflow",
    "shim explain mnist_mlp torch:compile torch --rounds 6",
    "shim explain imdb_fasttext-ngrams=1 jax torch --json",
    "shim explain --run .shim/runs/20260101-120000-mnist_mlp.jsonl",
)
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
        targets = chosen_targets([first, second])
        path = output or run_path(chosen.label)
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
        print_json(explanation.as_json(found))
    else:
        explanation.print_explanation(found, console())
        tell_paths(path, page_path)


@command(
    "causes",
    "shim causes --list                 what is suspected, and what was predicted",
    "shim causes                        test all, about five minutes",
    "shim causes numpy-threads tensorflow-call --rounds 12",
    "shim causes --run .shim/runs/20260101-120000-causes.jsonl --json",
)
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

    chosen = testing.choose(split(names), hypotheses.CAUSES)
    if listed:
        if as_json:
            print_json(showing.list_as_json(chosen))
        else:
            showing.print_list(chosen, console())
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
        path = output or run_path("causes")
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
        print_json(showing.as_json(run, found))
    else:
        showing.print_findings(found, console())
        tell_paths(path, page_path)


@command(
    "map",
    "shim map lstm",
    "shim map dense --backends numpy,torch --budget 120",
    "shim map conv2d --direction forward --json",
    "shim map lstm --shapes deepbench --direction forward",
    "shim map --run .shim/runs/20260101-120000-map-lstm.jsonl",
)
@click.argument("op", required=False)
@click.option("--shapes", metavar="NAME", help="Published shapes instead of the grid: deepbench, or ptb of lstm.")
@backends_option
@click.option(
    "--direction", type=click.Choice(["forward", "forward_backward"]), default="forward_backward", show_default=True
)
@click.option(
    "--budget",
    type=click.FloatRange(0, min_open=True),
    default=200.0,
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
        path = output or run_path("-".join(filter(None, ("map", op, shapes))))
        run = benching.run(
            path,
            targets=chosen_targets(backends),
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
        print_json(winmap.as_json(found))
    else:
        winmap.print_map(found, console())
        tell_paths(path, page_path)
