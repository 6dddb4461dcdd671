"""Commands about what is there: backends, environments, parity, data sets."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from shim.cli.common import (
    Progress,
    chosen_targets,
    command,
    device_option,
    json_option,
    print_json,
    print_table,
    split,
)


@command(
    "backends",
    "shim backends",
    "shim backends --json",
)
@json_option
def backends(as_json: bool) -> None:
    """List the backends: what is installed, versions, devices and modes."""
    from shim import listing

    rows = listing.backends()
    if as_json:
        print_json(rows)
        return
    cells = []
    for row in rows:
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        found = row["device"] or row["reason"] or ""
        cells.append((row["target"], row["state"], versions, ", ".join(row["devices"]), ", ".join(row["modes"]), found))
    print_table(("backend", "state", "versions", "devices", "modes", "found"), cells)


@command(
    "env",
    "shim env                        what is there",
    "shim env torch jax              create or update two environments",
    "shim env tensorflow@2.16.2      another version beside the pinned one",
    "shim env --python /usr/bin/python3 cupy torch jax    take what is installed there",
    "shim env --remove torch",
)
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

    chosen = split(targets)
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
        print_json(rows)
    else:
        shown = ("target", "state", "versions", "size", "reason")
        print_table(shown, ([row[name] or "" for name in shown] for row in rows))


@command(
    "check",
    "shim check                      every installed backend",
    "shim check torch --op lstm",
    "shim check cupy torch --device cuda",
    "shim check --json > parity.json",
)
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
    for target in chosen_targets(targets, device):
        progress, outcomes = Progress(), []
        try:
            for outcome in checking.check(target, modes, ops, progress, device):
                outcomes.append(outcome)
        finally:
            progress.stop()
        results[target] = checking.summary(outcomes)
        if not as_json:
            print_check(target, results[target])
    if as_json:
        print_json(results)
    if any(result["failed"] for result in results.values()):
        sys.exit(1)


def print_check(target: str, result: dict[str, Any]) -> None:
    """Print what :func:`shim.check.summary` says of a target."""
    worst = f", worst error {result['worst']:.2f} of the tolerance" if result["worst"] is not None else ""
    beyond = f", {result['unsupported']} cannot be done" if result["unsupported"] else ""
    click.echo(f"{target}: {result['passed']} passed, {result['failed']} failed{beyond}{worst}")
    for reason, count in result["reasons"].items():
        click.echo(f"  {count} of them: {reason}")
    for failure in result["failures"]:
        click.echo(f"  {failure['mode']} {failure['case']}: {failure['error']}")


@command(
    "data",
    "shim data                       which files are used, and their checksums",
    "shim data --fetch mnist cifar10",
    "shim data --json",
    "SHIM_DATA=~/data shim data      files from a folder of your own",
)
@click.argument("names", nargs=-1)
@click.option("--fetch", is_flag=True, help="Download what is missing or damaged; without names, all data sets.")
@json_option
def data(names: tuple[str, ...], fetch: bool, as_json: bool) -> None:
    """List the data sets of the models: where each comes from, its size and checksum."""
    from shim import data as datasets

    chosen = split(names) or list(datasets.names())
    for name in chosen:
        datasets.check_name(name)
    missing = [name for name in chosen if fetch and datasets.fetch(name, Progress()) is None]
    rows = [row for row in datasets.table() if row["name"] in chosen]
    if as_json:
        print_json(rows)
    else:
        cells = []
        for row in rows:
            sha = row["sha256"][:12] + ("" if row["known"] else " (not Keras' own file)")
            cells.append((row["name"], row["source"], f"{row['bytes'] / 1e6:.1f} MB", sha, row["path"]))
        print_table(("data", "source", "size", "sha256", "path"), cells)
    if missing:
        sys.exit(1)
