"""A run of the article's benchmark as a page: the article's charts with intervals, beside the published figures."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from shim import article_2017, statistics
from shim.article import Article
from shim.report import article as summaries
from shim.report import colours, page, plots, words
from shim.report.article import Result, Summary

Styles = Mapping[str, colours.Style]
_FILLS = {"K80": "none", "P100": "left", "32 vCPU": "bottom"}
_PLOT_MODELS = 4  # in one plot


def write(article: Article, path: Path, baseline: str | None = None) -> Path:
    """Write a run as a page and return its path. Raises ``ValueError`` for an unknown baseline."""
    return page.save(render(summaries.summary(article, baseline)), path)


def title(found: Summary) -> str:
    """Name a run by its models and contestants."""
    names = words.line(words.listing(found.contestants), 120)
    return f"{words.count(sum(map(bool, found.results.values())), 'model')} of 2017: {names}"


def render(found: Summary, site: Any = None) -> str:
    """Return a run as the text of an HTML page, which may be one of a ``site``: see :class:`shim.report.site.Place`."""
    styles = _styles(found)
    plan = found.article.plan
    return page.fill(
        "article.html",
        found=found,
        plan=plan,
        styles=styles,
        summaries=summaries,
        median=median,
        notes=article_2017.NOTES,
        sentences=list(sentences(found)),
        site=site,
        title=title(found),
        ratio_figures=list(_ratio_figures(found, styles)),
        thousand_figures=list(_thousand_figures(found, styles)),
        models=[
            {
                "id": f"model-{number}",
                "name": model,
                "results": results,
                "figures": list(_model_figures(f"m{number}", model, results, found, styles)),
            }
            for number, (model, results) in enumerate(found.results.items())
            if results
        ],
        **facts(found.article),
    )


def facts(article: Article) -> dict[str, Any]:
    """Return what a page says of its run: when, where, by which versions, and how to do it again."""
    runs = [run for runs in article.runs.values() for run in runs]
    header = runs[0].header if runs else {}
    return {
        "header": header,
        "started": words.moment(header.get("started")) if runs else "never",
        "environment": list(page.flatten(header.get("environment", {}))),
        "contestants": page.descriptions([worker for run in runs for worker in run.workers]),
        "command": shlex.join(["shim", "article", "--resume", str(article.folder)]),
    }


def _styles(found: Summary) -> dict[str, colours.Style]:
    """Give published runs the colour and the marker of their backend, but not filled."""
    styles = colours.styles(found.contestants)
    for logs in found.published.values():
        for log in logs:
            colour, marker = colours.BACKENDS[log.backend]
            machine = log.label.partition(f" {log.backend}")[0]
            style = colours.Style(colour, marker, _FILLS.get(machine, "top"))
            styles |= {log.label: style, f"{log.label} / cuDNN": style}
    return styles


def sentences(found: Summary) -> Iterator[str]:
    """Say what was trained, and how the contestants' times compare on each model."""
    plan = found.article.plan
    names = words.listing([words.line(name, 60) for name in found.contestants])
    share = "all samples" if plan["scale"] == 1 else f"{100 * plan['scale']:.3g} % of the samples"
    yield (
        f"{names} trained {words.count(len(plan['models']), 'model')} of 2017's benchmark on {share}, "
        f"{words.count(plan['repeats'], 'time')} over, each time in new processes and in random order."
    )
    for model, results in found.results.items():
        told = [f"{words.line(r.contestant, 40)} {words.verdict(r.ratio)}" for r in results if r.ratio]
        if told:
            yield f"{model}, training time beside {words.line(found.baseline, 40)}: {', '.join(told)}."


def _dot(name: str, estimate: statistics.Estimate) -> plots.Dot:
    return plots.Dot(name, estimate.value, estimate.low, estimate.high)


def _point(name: str, value: float) -> plots.Dot:
    """Return a published value: a single run has no interval."""
    return plots.Dot(name, value, math.nan, math.nan)


def _in_parts(strips: Iterable[plots.Strip]) -> Iterator[list[plots.Strip]]:
    kept = [strip for strip in strips if strip.dots]
    for start in range(0, len(kept), _PLOT_MODELS):
        yield kept[start : start + _PLOT_MODELS]


def _ratio_figures(found: Summary, styles: Styles) -> Iterator[dict[str, Any]]:
    strips = []
    for model, results in found.results.items():
        dots = [_dot(r.contestant, r.ratio) for r in results if r.ratio]
        if found.baseline == summaries.BASELINE:
            dots += _published_ratios(found.shown(model), found.published[model])
        strips.append(plots.Strip(model, dots))
    for number, part in enumerate(_in_parts(strips)):
        caption = f"Training time of an epoch / that of {words.line(found.baseline, 24)}; grey is a tie"
        svg = plots.ratios(part, styles, found.baseline, caption, f"ratio{number}")
        yield {"caption": caption, "svg": Markup(svg)}


def _published_ratios(shown: Iterable[article_2017.Log], logs: Sequence[article_2017.Log]) -> Iterator[plots.Dot]:
    for log in shown:
        base = summaries.published_baseline(log, logs)
        if value := summaries.published_ratio(log, logs):
            yield _point(f"{log.label} / cuDNN" if base and base.cudnn_lstm else log.label, value)


def _thousand_figures(found: Summary, styles: Styles) -> Iterator[dict[str, Any]]:
    strips = []
    for model, results in found.results.items():
        dots = [_dot(r.contestant, r.per_thousand) for r in results if r.per_thousand.value > 0]
        dots += [_point(log.label, median(log.seconds_per_thousand)) for log in found.shown(model)]
        strips.append(plots.Strip(model, dots if results else []))
    for number, part in enumerate(_in_parts(strips)):
        caption = "Training and evaluation for 1,000 training samples, now and in 2017"
        label = "time for 1,000 samples, logarithmic"
        svg = plots.times(part, styles, caption, f"thousand{number}", label)
        yield {"caption": caption, "svg": Markup(svg)}


def _model_figures(
    name: str, model: str, results: Sequence[Result], found: Summary, styles: Styles
) -> Iterator[dict[str, Any]]:
    parts = (("training of an epoch", "train"), ("evaluation", "evaluate"), ("training of the first epoch", "first"))
    strips = [
        plots.Strip(heading, [_dot(r.contestant, e) for r in results if (e := getattr(r, key)).value > 0])
        for heading, key in parts
    ]
    caption = "Time of an epoch, with its interval over the repeats"
    svg = plots.times([s for s in strips if s.dots], styles, f"{model}: {caption}", f"{name}-time", "time, logarithmic")
    yield {"caption": caption, "svg": Markup(svg)}
    measure = results[0].measure
    what = "Test accuracy" if measure == "test_accuracy" else "Training loss"
    lines = {r.contestant: [_curve(epochs, measure) for epochs in r.repeats if epochs] for r in results}
    by_time = {r.contestant: [_by_time(epochs, measure) for epochs in r.repeats if epochs] for r in results}
    beside = _published_curves(model, results, found)
    for caption, drawn, label in (
        (f"{what} by epoch" + (", with 2017's" if beside else ""), lines | beside, "epoch"),
        (f"{what} by seconds of training", by_time, "seconds of training, evaluation left out"),
    ):
        identity = f"{name}-{measure}-{'time' if drawn is by_time else 'epoch'}"
        svg = plots.curves(drawn, styles, f"{model}: {caption}", identity, label=label)
        yield {"caption": caption, "svg": Markup(svg)}


def _curve(epochs: Sequence[dict[str, Any]], measure: str) -> tuple[list[float], list[float]]:
    return [e["epoch"] for e in epochs], [_number(e, measure) for e in epochs]


def _number(epoch: dict[str, Any], key: str) -> float:
    return math.nan if epoch.get(key) is None else float(epoch[key])


def _by_time(epochs: Sequence[dict[str, Any]], measure: str) -> tuple[list[float], list[float]]:
    return list(accumulate(_number(e, "train_seconds") for e in epochs)), _curve(epochs, measure)[1]


def _published_curves(
    model: str, results: Sequence[Result], found: Summary
) -> dict[str, list[tuple[list[float], list[float]]]]:
    """Return June's curves, where the new run had the same data and all of them."""
    if found.article.plan["scale"] < 1 or summaries.source(results) != "real":
        return {}
    june = [log for log in found.shown(model) if log.set == "2017-06 K80"]
    return {log.label: [([k + 1.0 for k in range(len(log.loss))], list(log.accuracy or log.loss))] for log in june}
