"""What the commands share: how they fail, their options, what they print, and their progress bar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

import shim


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


def command(name: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Return the decorator of a command, whose help ends with these examples."""
    return main.command(name, epilog="\n".join(["Examples:", "", "\b", *(f"  {example}" for example in examples)]))


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
backends_option = click.option(
    "--backends", "-b", multiple=True, metavar="NAMES", help="Backends, comma-separated; default: all installed."
)
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


def split(values: Iterable[str]) -> list[str]:
    """Return names that were given one by one or with commas."""
    return [part for value in values for part in value.split(",") if part]


def console() -> Any:
    """Return where tables are printed."""
    from rich.console import Console

    return Console(soft_wrap=False)


def print_json(value: Any) -> None:
    """Print for machines."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print a table; what its cells say is no markup."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(*headings)
    for cells in rows:
        table.add_row(*map(escape, cells))
    console().print(table)


def tell_paths(path: Path, page_path: Path) -> None:
    """Say where the samples are, and the page made of them."""
    click.echo(f"run file  {path}\nreport    {page_path}")


def run_path(name: str) -> Path:
    """Return where a run of this name goes if nobody says otherwise."""
    from datetime import datetime

    from shim import environments

    return environments.home() / "runs" / f"{datetime.now():%Y%m%d-%H%M%S}-{name}.jsonl"


def show_run(run: Any, path: Path, baseline: str | None, page_path: Path, as_json: bool) -> None:
    """Write the page of a run and print its table."""
    from shim.report import page, table

    page_path = page.write(run, page_path, baseline)
    if as_json:
        print_json(table.as_json(run, baseline))
    else:
        table.print_run(run, console(), baseline)
        tell_paths(path, page_path)


def chosen_targets(chosen: Iterable[str], device: str = "cpu") -> list[str]:
    """Return the targets asked for, or all for a device that are installed; the error names what installs one."""
    from shim import environments, listing, settings

    targets = split(chosen)
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
