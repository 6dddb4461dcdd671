"""Commands that train: one model, and the article's benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from shim.cli.common import (
    Progress,
    backends_option,
    chosen_targets,
    command,
    console,
    json_option,
    output_option,
    print_json,
    run_path,
    show_run,
    split,
    threads_option,
)


@command(
    "train",
    "shim train mnist_mlp",
    "shim train imdb_bidirectional_lstm --backends tensorflow --epochs 4",
    "shim train imdb_fasttext-ngrams=1    a variant of a model",
    "shim train --resume .shim/runs/20260101-120000-mnist_mlp.jsonl",
    "SHIM_DATA=~/data shim train mnist_mlp --backends torch,jax --json",
)
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
        path = output or run_path(models.load(model).label)
        run = training.train(
            model,
            chosen_targets(backends),
            epochs=epochs,
            seed=seed,
            mode=mode,
            limit=limit,
            path=path,
            progress=Progress(),
        )
    show_run(run, path, None, path.with_suffix(".html"), as_json)
    excused = None if backends else "unsupported"  # of all that are installed, some may be for other work
    if any(failure["stage"] != excused for failure in run.failures):
        sys.exit(1)


@command(
    "article",
    "shim article --scale 0.02 --epochs 3",
    "shim article --backends tensorflow,cntk,torch --models mnist_mlp,mnist_cnn",
    "shim article --repeats 5 --output runs/article --json",
    "shim article --resume runs/article",
)
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
            output or run_path("article").with_suffix(""),
            targets=chosen_targets(backends),
            chosen=split(chosen),
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
        print_json(summaries.as_json(summary))
    else:
        summaries.print_summary(summary, console())
        click.echo(f"folder    {found.folder}\nreport    {page}")
    if summary.failures:
        sys.exit(1)
