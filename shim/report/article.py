"""What a run of the article's benchmark came to: intervals over its repeats, ratios, a table in the terminal, JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shim import article_2017, statistics
from shim.article import Article
from shim.measure.runfile import plain
from shim.report import words
from shim.report.summary import summarise
from shim.report.table import WIDE, empty_table

BASELINE = "tensorflow"
#: The published runs that plots show beside new ones: (set, backend). The table of the page has all of them.
SHOWN = (
    ("2017-06 K80", "tensorflow"),
    ("2017-06 K80", "cntk"),
    ("2017-11 P100", "tensorflow"),
    ("2017-11 P100", "cntk"),
    ("2017-07 32 vCPU", "tensorflow"),
)
Samples = list[list[float | None]]


@dataclass(frozen=True)
class Result:
    """One contestant on one model. ``repeats`` are its epochs, of each repeat in order, none where a repeat failed.

    ``train``, ``evaluate`` and ``first`` are seconds: of the training of an epoch after the first, of an evaluation,
    and of the training of the first epoch, which also compiles. ``per_thousand`` is training and evaluation of an epoch
    for 1,000 training samples. ``final`` is the test accuracy after the last epoch, or the training loss (``measure``).
    """

    model: str
    contestant: str
    repeats: tuple[tuple[dict[str, Any], ...], ...]
    train: statistics.Estimate
    evaluate: statistics.Estimate
    first: statistics.Estimate
    per_thousand: statistics.Estimate
    ratio: statistics.Ratio | None
    final: statistics.Estimate
    measure: str


@dataclass(frozen=True)
class Summary:
    """A run of the article's benchmark, made ready to show."""

    article: Article
    baseline: str
    results: dict[str, tuple[Result, ...]]
    published: dict[str, tuple[article_2017.Log, ...]]
    failures: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]

    @property
    def contestants(self) -> list[str]:
        """The contestants in the order of the plan."""
        return [str(label) for label in self.article.plan["targets"]]

    def shown(self, model: str) -> list[article_2017.Log]:
        """Return the published runs of a model that plots show."""
        return [log for log in self.published[model] if (log.set, log.backend) in SHOWN]


def summary(article: Article, baseline: str | None = None) -> Summary:
    """Make a run ready to show. Raises ``ValueError`` if ``baseline`` is not one of its contestants."""
    labels = [str(label) for label in article.plan["targets"]]
    chosen = baseline or (BASELINE if BASELINE in labels else None)
    base = statistics.choose_baseline(labels, chosen) or ""
    results, failures, published = {}, [], {}
    for model, runs in article.runs.items():
        summaries = [summarise(run) for run in runs]
        epochs: dict[str, list[tuple[dict[str, Any], ...]]] = {
            label: [next((t.epochs for t in s.trainings if t.contestant == label), ()) for s in summaries]
            for label in labels
        }
        trained = {label: repeats for label, repeats in epochs.items() if any(repeats)}
        first = 0 if article.plan["models"][model] == 1 else 1  # an only epoch has to do
        results[model] = tuple(_result(model, label, trained, base, first) for label in trained)
        failures += [failure | {"model": model} for found in summaries for failure in found.failures]
        published[model] = tuple(log for log in article_2017.logs() if log.model == model)
    return Summary(article, base, results, published, tuple(failures), tuple(_warnings(article, results, failures)))


def _result(
    model: str, label: str, trained: dict[str, list[tuple[dict[str, Any], ...]]], base: str, first: int
) -> Result:
    """Compute intervals and ratio of a contestant; ``first`` is the index of the first epoch that counts."""
    repeats = trained[label]
    measure = "loss" if any(e.get("test_accuracy") is None for epochs in repeats for e in epochs) else "test_accuracy"
    train = [row[first:] for row in _column(repeats, "train_seconds")]
    evaluate = [[seconds or None for seconds in row] for row in _column(repeats, "evaluate_seconds")]
    other = [row[first:] for row in _column(trained.get(base, []), "train_seconds")]
    ratio = statistics.ratio(train, other) if other and base != label else None
    return Result(
        model=model,
        contestant=label,
        repeats=tuple(repeats),
        train=statistics.median_time(train),
        evaluate=statistics.median_time(evaluate),
        first=statistics.median_time([row[:1] for row in _column(repeats, "train_seconds")]),
        per_thousand=statistics.median_time([[_of_thousand(epoch) for epoch in epochs[first:]] for epochs in repeats]),
        ratio=None if ratio is None or math.isnan(ratio.value) else ratio,
        final=statistics.median_time([row[-1:] for row in _column(repeats, measure)]),
        measure=measure,
    )


def _column(repeats: Iterable[Sequence[dict[str, Any]]], key: str) -> Samples:
    return [[epoch.get(key) for epoch in epochs] for epochs in repeats]


def _of_thousand(epoch: dict[str, Any]) -> float | None:
    train, evaluate, samples = (epoch.get(key) for key in ("train_seconds", "evaluate_seconds", "samples"))
    return 1000 * (train + evaluate) / samples if samples and train is not None and evaluate is not None else None


def published_ratio(log: article_2017.Log, logs: Iterable[article_2017.Log]) -> float | None:
    """Return the time of a published run divided by TensorFlow's of the same set, medians without first epochs."""
    base = published_baseline(log, logs)
    return median(log.seconds[1:]) / median(base.seconds[1:]) if base and base is not log else None


def published_baseline(log: article_2017.Log, logs: Iterable[article_2017.Log]) -> article_2017.Log | None:
    """Return TensorFlow's run of the same set."""
    return next((other for other in logs if (other.set, other.backend) == (log.set, BASELINE)), None)


def source(found: Sequence[Result]) -> str:
    """Return which data a model was trained on: ``real``, ``part`` or ``embedded``."""
    return next((str(e.get("source")) for r in found for epochs in r.repeats for e in epochs), "")


def _warnings(article: Article, results: dict[str, tuple[Result, ...]], failures: Sequence[Any]) -> Iterable[str]:
    plan = article.plan
    if article.missing:
        yield f"This run is unfinished: {article.missing} of {words.count(len(plan['jobs']), 'training')} to go."
    if failures:
        yield f"{words.count(len(failures), 'failure')} recorded; they are listed at the end."
    if plan["scale"] < 1:
        yield (
            f"Only {100 * plan['scale']:.3g} % of the samples were trained and tested on. Times beside those of 2017 "
            "are therefore times for 1,000 training samples, and accuracies are not comparable with those of 2017."
        )
    if models := [model for model, found in results.items() if source(found) not in ("", "real")]:
        yield (
            f"The data of {words.listing(models)} are not the article's but a stand-in of the same shapes: "
            "times are comparable, accuracies and losses are not."
        )
    if plan["repeats"] < statistics.ROUNDS_FOR_A_VERDICT:
        yield (
            f"Only {words.count(plan['repeats'], 'repeat')}: intervals and verdicts need at least "
            f"{statistics.ROUNDS_FOR_A_VERDICT}, since epochs of one process say nothing of the next one."
        )
    if short := [model for model, epochs in plan["models"].items() if epochs == 1]:
        yield f"{words.listing(short)}: with a single epoch, its time includes what is compiled in it."


# ------------------------------------------------------------------------------------------------ terminal and JSON


def write_final(result: Result) -> str:
    """Write the last accuracy as a percentage, a loss as a number."""
    return (words.percent if result.measure == "test_accuracy" else words.number)(result.final.value)


def write_published_final(log: article_2017.Log) -> str:
    """Write the last published accuracy as a percentage, a loss as a number."""
    return words.percent(log.accuracy[-1]) if log.accuracy else words.number(log.loss[-1])


def write_interval(estimate: statistics.Estimate, write: Any) -> str:
    """Write an interval in brackets; a dash where there is none."""
    return words.interval(write(estimate.low), write(estimate.high))


def print_summary(found: Summary, console: Console) -> None:
    """Print a table for each model, new results above published ones."""
    for warning in found.warnings:
        console.print(Text(f"WARNING: {warning}", style="bold red"))
    for model, results in found.results.items():
        if not results:
            continue
        console.print()
        console.print(Text(f"{model}, {words.count(found.article.plan['models'][model], 'epoch')}", style="bold"))
        console.print(_table(model, found, console.width >= WIDE))
    _print_legend(found, console)


def _table(model: str, found: Summary, wide: bool) -> Table:
    """Return new results above published ones; a narrow table leaves out what the page has."""
    results = found.results[model]
    final = ">accuracy" if results[0].measure == "test_accuracy" else ">loss"
    more = ("", ">evaluation") if wide else ()
    table = empty_table(False, "contestant", ">epoch", *more, ">first", ">ratio", "", final, ">/ 1,000")
    for column in table.columns:
        column.no_wrap = True
    for r in results:
        ratio = r.ratio or statistics.Estimate(1.0 if r.contestant == found.baseline else math.nan, math.nan, math.nan)
        details = (write_interval(r.train, words.duration), words.duration(r.evaluate.value)) if wide else ()
        table.add_row(
            Text(words.line(r.contestant, 40)),
            words.duration(r.train.value),
            *details,
            words.duration(r.first.value),
            words.ratio(ratio.value),
            Text(write_interval(ratio, words.ratio), style="dim"),
            write_final(r),
            words.duration(r.per_thousand.value),
        )
    if shown := found.shown(model):
        table.add_row(Text("published in 2017:", style="dim"))
    for log in shown:
        table.add_row(
            log.label,
            words.duration(median(log.seconds[1:])),
            *("", words.DASH)[: len(more)],
            words.duration(log.seconds[0]),
            words.ratio(published_ratio(log, found.published[model])),
            "",
            write_published_final(log),
            words.duration(median(log.seconds_per_thousand)),
            style="dim",
        )
    return table


def _print_legend(found: Summary, console: Console) -> None:
    console.print()
    for line in (
        "epoch: median training time of an epoch after the first; in brackets: 95 % intervals over the repeats",
        "first: training time of the first epoch, in which backends compile",
        f"ratio: training time / training time of {words.line(found.baseline, 40)} in the same repeat and epoch",
        "/ 1,000: training and evaluation of an epoch for 1,000 training samples, which is what 2017's logs timed",
        "published rows are single runs, and their epoch includes evaluation",
    ):
        console.print(Text(line, style="dim"))
    for failure in found.failures:
        told = words.line(words.reason(failure.get("reason", "")), 300)
        console.print(Text(f"{failure['model']}: {words.line(failure['contestant'], 40)}: {told}", style="red"))


def as_json(found: Summary) -> dict[str, Any]:
    """Return what the page shows as numbers that JSON can hold; times in seconds, NaN as None."""
    published: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for model, logs in found.published.items():
        for log in logs:
            published[model].append(asdict(log) | {"seconds_per_thousand": median(log.seconds_per_thousand)})
    result: dict[str, Any] = plain(
        {
            "schema": 1,
            "plan": found.article.plan,
            "complete": not found.article.missing,
            "baseline": found.baseline,
            "warnings": found.warnings,
            "results": {model: [asdict(r) for r in results] for model, results in found.results.items()},
            "published": published,
            "notes": article_2017.NOTES,
            "failures": found.failures,
        }
    )
    return result
