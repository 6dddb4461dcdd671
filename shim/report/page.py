"""A run as one HTML file that needs nothing else: no network, no script to be readable, light and dark, phone and desk.

Everything that comes from the run file is escaped by Jinja2, and the page's own policy forbids it to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from shim.report import colours, plots, words
from shim.report.summary import CaseResult, Entry, Summary, Training, summarise

TEMPLATES = Path(__file__).parent / "templates"
STRIPS_A_PLOT = 10
EMBEDDED_SAMPLES = 20_000  # more stay in the run file


def write(run: Any, path: Path, baseline: str | None = None) -> Path:
    """Write a run as a page and return its path. Raises ``ValueError`` for an unknown baseline."""
    return save(render(run, baseline), path)


def save(text: str, path: Path) -> Path:
    """Write the text of a page, and the folders above it, and return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", errors="replace")
    return path


def render(run: Any, baseline: str | None = None) -> str:
    """Return a run as the text of an HTML page."""
    return of_summary(summarise(run, baseline))


def of_summary(summary: Summary, site: Any = None) -> str:
    """Return a run as the text of an HTML page, which may be one of a ``site``: see :class:`shim.report.site.Place`."""
    styles = colours.styles(summary.contestants)
    names = [case.name for case in summary.cases]
    return fill(
        "page.html",
        **of_run(summary.run),
        **scripted(),
        site=site,
        summary=summary,
        styles=styles,
        ops=list(dict.fromkeys(name.op for name in names)),
        directions=list(dict.fromkeys(name.direction for name in names)),
        title=title(summary),
        config=summary.run.header.get("config", {}),
        sentences=list(overview(summary)),
        scores=_scores(summary),
        groups=[
            _group(k, heading, cases, summary, styles) for k, (heading, cases) in enumerate(summary.groups.items())
        ],
        models=[_model(k, name, found, styles) for k, (name, found) in enumerate(_by_model(summary).items())],
        samples={} if site else _samples(summary),
        sample_count=sum(len(block["seconds"]) for block in summary.run.blocks),
    )


def of_run(run: Any) -> dict[str, Any]:
    """Return what every page says of its run: when, where, by which versions, and how to do it again."""
    return {
        "header": run.header,
        "started": words.moment(run.header.get("started")),
        "environment": list(flatten(run.header.get("environment", {}))),
        "contestants": descriptions(run.workers),
        "command": shlex.join(words.line(part) for part in run.header.get("command", ())),
        "run_file": words.line(Path(run.path).name) if getattr(run, "path", None) else "",
    }


def scripted() -> dict[str, Any]:
    """Return the script of a page with something to filter or to sort, and what lets it run."""
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"script": Markup(script), "script_source": f"'sha256-{digest}'"}


def fill(template: str, site: Any = None, **values: Any) -> str:
    """Return the text of a page made from a template that extends ``base.html``; ``site`` has links to the others."""
    style_sheet = Markup((TEMPLATES / "page.css").read_text(encoding="utf-8"))
    return templates().get_template(template).render(words=words, style_sheet=style_sheet, site=site, **values)


@cache
def templates() -> jinja2.Environment:
    """Return the templates of all pages, which escape whatever they are given."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clean": words.clean, "line": words.line}
    environment.globals["glyph"] = glyph
    return environment


def glyph(style: colours.Style) -> Markup:
    """Return a contestant's marker as a small picture for use beside its name."""
    return Markup(plots.marker(style))  # holds colours and coordinates only


def title(summary: Summary) -> str:
    """Name a run by what took part."""
    models = sorted({training.model for training in summary.trainings})
    if models and not summary.cases:
        return f"Training {words.listing([words.line(model, 60) for model in models])}"
    return f"{words.count(len(summary.contestants), 'contestant')} on {words.count(len(summary.cases), 'case')}"


def overview(summary: Summary) -> Iterator[str]:
    """Say in plain sentences what came out and what was done."""
    config = summary.run.header.get("config", {})
    machine = words.line((summary.run.header.get("environment") or {}).get("cpu") or "this machine", 100)
    if summary.cases:
        names = words.listing([words.line(name, 60) for name in summary.contestants])
        yield summary.tally
        yield (
            f"{names} ran {words.count(len(summary.cases), 'case')}, each an operation or a model at one shape, "
            f"on {machine}: up to {words.count(config.get('rounds', 0), 'round')} of fresh processes, measured in "
            "turns and in shuffled order, so that whatever disturbs the machine disturbs all of them alike."
        )
        if all(entry.parity is not None for case in summary.cases for entry in case.entries if entry.row):
            yield "Before the clock started, every result and gradient was compared with a float64 reference."
    for model, found in _by_model(summary).items():
        names = words.listing([words.line(training.contestant, 60) for training in found])
        key, name = "test_accuracy", "test accuracy"
        written: Callable[[Any], str] = words.percent
        if any(training.epochs[-1].get(key) is None for training in found):  # there is nothing to test on
            key, name, written = "loss", "training loss", words.number
        last = sorted(training.values(key)[-1] for training in found)
        span = written(last[0]) if len(last) == 1 else f"from {written(last[0])} to {written(last[-1])}"
        yield (
            f"{words.line(model, 60)} was trained by {names} from the same initial weights and batches; "
            f"{name} after the last epoch: {span}."
        )


def _scores(summary: Summary) -> list[dict[str, Any]]:
    """Count for each contestant how its cases ended."""
    found = []
    for name in summary.contestants:
        counts = Counter(_score(case, name) for case in summary.cases)
        found.append(
            {"contestant": name, **{key: counts[key] for key in ("fastest", "tie", "unknown", "behind", "failed")}}
        )
    return found if summary.cases else []


def _score(case: CaseResult, name: str) -> str:
    entry = case.entry(name)
    if entry is None or entry.row is None:
        return "failed"
    if name in case.outcome.contestants:
        return case.outcome.kind
    return "behind" if case.outcome.kind != "none" else "none"


def _group(
    number: int, heading: str, cases: Sequence[CaseResult], summary: Summary, styles: Mapping[str, colours.Style]
) -> dict[str, Any]:
    """Prepare a section: its plots, a few cases each, and its table."""
    figures: list[dict[str, Any]] = []
    for start in range(0, len(cases), STRIPS_A_PLOT):
        part = [case for case in cases[start : start + STRIPS_A_PLOT] if any(entry.row for entry in case.entries)]
        if part:
            name = f"g{number}p{start // STRIPS_A_PLOT}"
            figures += _figures(name, heading, part, summary, styles)
    return {"id": f"group-{number}", "heading": heading, "cases": cases, "figures": figures}


def _figures(
    name: str, heading: str, cases: Sequence[CaseResult], summary: Summary, styles: Mapping[str, colours.Style]
) -> Iterator[dict[str, Any]]:
    strips = [plots.Strip(case.name.within_group, list(_dots(case.entries, "time"))) for case in cases]
    caption = "Median time of one call, with its interval"
    yield {"caption": caption, "svg": Markup(plots.times(strips, styles, f"{heading}: {caption}", f"{name}-time"))}
    strips = [plots.Strip(case.name.within_group, list(_dots(case.entries, "ratio"))) for case in cases]
    if any(strip.dots for strip in strips):
        caption = f"Ratio to {words.line(summary.baseline, 24)}, with its interval; grey is a tie"
        svg = plots.ratios(strips, styles, summary.baseline, f"{heading}: {caption}", f"{name}-ratio")
        yield {"caption": caption, "svg": Markup(svg)}


def _dots(entries: Sequence[Entry], what: str) -> Iterator[plots.Dot]:
    for entry in entries:
        found = getattr(entry.row, what, None)
        if found is not None and 0 < found.value < float("inf"):
            yield plots.Dot(entry.contestant, found.value, found.low, found.high)


def _by_model(summary: Summary) -> dict[str, list[Training]]:
    found: dict[str, list[Training]] = defaultdict(list)
    for training in summary.trainings:
        found[training.model].append(training)
    return dict(found)


CURVES = (
    ("test_accuracy", "Test accuracy", False),
    ("loss", "Training loss", False),
    ("train_seconds", "Training time of an epoch, in seconds", True),
)


def _model(number: int, name: str, found: Sequence[Training], styles: Mapping[str, colours.Style]) -> dict[str, Any]:
    figures = []
    for key, label, from_zero in CURVES:
        if all(epoch.get(key) is None for training in found for epoch in training.epochs):
            continue  # nothing to test on
        lines = {t.contestant: [([e["epoch"] for e in t.epochs], t.values(key))] for t in found}
        svg = plots.curves(lines, styles, f"{name}: {label} by epoch", f"m{number}-{key}", from_zero)
        figures.append({"caption": label, "svg": Markup(svg)})
    return {"id": f"model-{number}", "name": name, "trainings": found, "figures": figures}


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a nested record as names and texts: ``{"git": {"commit": "0a1b"}}`` gives ``("git commit", "0a1b")``."""
    for key, item in value.items():
        name = f"{prefix} {key}".strip().replace("_", " ") if not prefix.endswith("variables") else f"{prefix} {key}"
        if isinstance(item, Mapping):
            yield from flatten(item, name)
        elif isinstance(item, bool):
            yield name, "yes" if item else "no"
        elif item is None:
            yield name, "not known"
        elif isinstance(item, list):
            between = "; " if any(isinstance(part, Mapping) for part in item) else ", "
            yield name, between.join(map(_one_line, item)) or "none"
        elif name.endswith(" bytes") and isinstance(item, int):
            yield name.removesuffix(" bytes"), f"{item / 2**30:.1f} GiB"
        else:
            yield name, str(item)


def _one_line(value: Any) -> str:
    return ", ".join(f"{key} {text}" for key, text in flatten(value)) if isinstance(value, Mapping) else str(value)


def descriptions(workers: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """Return what each target said about itself, once for each target."""
    found: dict[str, list[tuple[str, str]]] = {}
    for worker in workers:
        given = {"variables": worker.get("variables") or {}}
        found.setdefault(str(worker.get("target")), list(flatten((worker.get("describe") or {}) | given)))
    return found


def _samples(summary: Summary) -> dict[str, list[tuple[str, str]]]:
    """Return every sample as text, by case; nothing if they are too many for a page."""
    blocks = summary.run.blocks
    if sum(len(block["seconds"]) for block in blocks) > EMBEDDED_SAMPLES:
        return {}
    labels = {(e.row.target, e.row.mode): e.contestant for c in summary.cases for e in c.entries if e.row}
    found: dict[str, dict[tuple[str, int], list[str]]] = defaultdict(lambda: defaultdict(list))
    for block in blocks:
        label = labels.get((block["target"], block["mode"]), str(block["target"]))
        found[block["case"]][label, block["round"]] += [f"{seconds:.4g}" for seconds in block["seconds"]]
    return {
        case: [(f"{label}, round {number}", " ".join(texts)) for (label, number), texts in sorted(rounds.items())]
        for case, rounds in found.items()
    }
