"""The article's benchmark: its plan, what its page and table say, and the published figures beside it."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from io import StringIO
from pathlib import Path
from statistics import mean

import example_run as example
import pytest
from click.testing import CliRunner
from rich.console import Console
from test_report_page import SHOWN, Page, assert_whole

from shim import article, article_2017, cli, environments, models
from shim.report import article as summaries
from shim.report import article_page
from tools import article_2017 as tool

TARGETS = (("tensorflow", "graph"), ("torch", "eager"))
PLAN = {"schema": 1, "scale": 0.1, "repeats": 3, "seed": 0, "threads": 2, "targets": ["tensorflow", "torch"]}


@pytest.fixture(autouse=True)
def embedded_data(monkeypatch, tmp_path):
    monkeypatch.delenv("SHIM_DATA", raising=False)
    monkeypatch.setenv("SHIM_OFFLINE", "1")
    monkeypatch.setenv("SHIM_HOME", str(tmp_path / "home"))


def _run(model, repeat, epochs, targets=TARGETS, source="real"):
    """Yield the records of a training: TensorFlow takes 2 s an epoch, the next 4 s, the first epoch 3 s more."""
    for record in example.epochs(model, targets, epochs):
        if record["record"] == "run":
            record["config"] |= {"model": model}
        if record["record"] == "epoch":
            slow = 2 * targets.index((record["target"], record["mode"])) + 2 + 3 * (record["epoch"] == 1)
            record |= {"samples": 5000, "test_samples": 500, "source": source, "train_seconds": slow + 0.01 * repeat}
            if model == "lstm_text_generation":
                record |= {"test_accuracy": None, "test_loss": None, "evaluate_seconds": 0.0}
        yield record


@pytest.fixture
def folder(tmp_path):
    """A folder with three repeats of three models."""
    counts = {"mnist_mlp": 3, "lstm_text_generation": 2, "imdb_bidirectional_lstm": 1}
    jobs = [{"model": m, "repeat": k, "targets": ["torch", "tensorflow"]} for k in range(3) for m in counts]
    (tmp_path / article.PLAN).write_text(json.dumps(PLAN | {"models": counts, "jobs": jobs}))
    for job in jobs:
        path = tmp_path / f"{job['model']}.{job['repeat'] + 1}.jsonl"
        example.write(path, _run(job["model"], job["repeat"], counts[job["model"]]))
    return tmp_path


def _printed(found, width):
    console = Console(file=StringIO(), width=width)
    summaries.print_summary(found, console)
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------------------ what it says


def test_first_epochs_and_evaluation_stand_apart_and_intervals_come_from_the_repeats(folder):
    found = summaries.summary(article.read(folder))
    tensorflow, torch = found.results["mnist_mlp"]
    assert tensorflow.train.value == pytest.approx(2.01)
    assert (tensorflow.first.value, tensorflow.evaluate.value) == (pytest.approx(5.01), pytest.approx(0.2))
    assert 1.9 < tensorflow.train.low < 2.0 < 2.02 < tensorflow.train.high < 2.1
    assert tensorflow.per_thousand.value == pytest.approx(2.21 / 5)
    assert tensorflow.ratio is None
    assert torch.ratio.value == pytest.approx(2, rel=0.01)
    assert torch.ratio.verdict == "slower"
    assert torch.final.value == pytest.approx(0.985 - 0.02 - 0.001)
    text, _ = found.results["lstm_text_generation"]
    assert (text.measure, text.final.value) == ("loss", 0.2)
    other = summaries.summary(article.read(folder), "torch").results["mnist_mlp"]
    assert other[0].ratio.value == pytest.approx(1 / torch.ratio.value, rel=1e-3)
    with pytest.raises(ValueError, match="baseline 'jax' is not in this run"):
        summaries.summary(article.read(folder), "jax")


def test_what_weakens_a_comparison_stands_first(folder):
    (folder / "mnist_mlp.3.jsonl").unlink()
    example.write(folder / "mnist_mlp.1.jsonl", _run("mnist_mlp", 0, 3, source="embedded"))
    found = summaries.summary(article.read(folder))
    for start, warning in zip(
        ("This run is unfinished: 1 of 9 trainings", "Only 10 % of the samples", "The data of mnist_mlp are not the"),
        found.warnings,
        strict=False,
    ):
        assert warning.startswith(start)
    assert "imdb_bidirectional_lstm: with a single epoch, its time includes what is compiled" in found.warnings[-1]
    assert all(warning[:30] in _printed(found, 100) for warning in found.warnings)


def test_a_first_epoch_is_never_taken_for_another_one(folder):
    for repeat in range(3):
        records = [r for r in _run("mnist_mlp", repeat, 3) if r.get("target") != "torch" or r.get("epoch") == 1]
        example.write(folder / f"mnist_mlp.{repeat + 1}.jsonl", records)
    torch = summaries.summary(article.read(folder)).results["mnist_mlp"][1]
    assert math.isnan(torch.train.value)
    assert (torch.first.value, torch.ratio, torch.contestant) == (pytest.approx(7.01), None, "torch")
    single = summaries.summary(article.read(folder)).results["imdb_bidirectional_lstm"]
    assert [result.train.value == result.first.value for result in single] == [True, True]
    assert "torch" in article_page.render(summaries.summary(article.read(folder)))


def test_a_repeat_that_failed_on_one_backend_pairs_with_nothing(folder):
    records = [r for r in _run("mnist_mlp", 1, 3) if r.get("target") != "torch"]
    example.write(folder / "mnist_mlp.2.jsonl", [*records, example.failure("torch", "eager", reason="it broke")])
    found = summaries.summary(article.read(folder))
    torch = found.results["mnist_mlp"][1]
    assert [len(epochs) for epochs in torch.repeats] == [3, 0, 3]
    assert torch.ratio.verdict == "unknown"
    assert found.failures[0]["model"] == "mnist_mlp"
    assert "mnist_mlp: torch: it broke" in _printed(found, 100)


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal(folder, width):
    text = _printed(summaries.summary(article.read(folder)), width)
    assert max(map(len, text.splitlines())) <= width
    assert all(name in text for name in ("2.01 s", "K80 cntk", "P100 tensorflow cuDNN", "2.1", "/ 1,000", "accuracy"))
    assert "…" not in text


def test_the_page_is_whole_and_loads_nothing(folder):
    text = article_page.render(summaries.summary(article.read(folder)))
    assert_whole(text, scripts=0)
    found = Page(text)
    said = " ".join(found.text().split())
    assert len([svg for svg in found.all("svg") if svg.get("role") == "img"]) == 2 + 3 * 3
    for expected in ("Only 10 % of the samples", "P100 cntk / cuDNN", "byte by byte", "cuDNN's LSTM", "shim article"):
        assert expected in said
    assert "with 2017's" not in said  # a part of the samples says nothing about accuracies then


def test_accuracies_of_2017_are_drawn_beside_whole_runs_on_real_data(folder):
    plan = json.loads((folder / article.PLAN).read_text())
    (folder / article.PLAN).write_text(json.dumps(plan | {"scale": 1}))
    text = article_page.render(summaries.summary(article.read(folder)))
    assert "Test accuracy by epoch, with 2017" in text
    example.write(folder / "mnist_mlp.1.jsonl", _run("mnist_mlp", 0, 3, source="embedded"))
    assert text.count(", with 2017") > article_page.render(summaries.summary(article.read(folder))).count(", with 2017")


def test_hostile_text_is_shown_as_text(folder):
    targets = ((example.HOSTILE, "m"), ("torch", "eager"))
    plan = json.loads((folder / article.PLAN).read_text())
    (folder / article.PLAN).write_text(json.dumps(plan | {"targets": [example.HOSTILE, "torch"]}))
    records = list(_run("mnist_mlp", 0, 3, targets, example.HOSTILE))
    records[0]["config"]["targets"] = [{"target": t, "mode": m, "label": t} for t, m in targets]
    failure = example.failure("torch", "eager", reason=example.HOSTILE)
    example.write(folder / "mnist_mlp.1.jsonl", [*records, failure])
    found = Page(article_page.render(summaries.summary(article.read(folder))))
    assert not found.all("script")
    assert not found.all("b")
    shown = {tag for tag, data in found.texts if SHOWN[:20] in data}
    assert {"h1", "p", "li", "th", "text", "desc"} <= shown


def test_json_has_everything_and_no_nan(folder):
    text = json.dumps(summaries.as_json(summaries.summary(article.read(folder))), allow_nan=False)
    found = json.loads(text)
    assert found["complete"]
    assert found["results"]["mnist_mlp"][1]["ratio"]["verdict"] == "slower"
    assert {log["set"] for log in found["published"]["mnist_mlp"]} == set(tool.SETS)


# ------------------------------------------------------------------------------------------------------- what it does


def test_every_model_is_trained_on_every_backend_in_every_repeat_and_the_order_comes_from_the_seed(tmp_path):
    def jobs(folder, seed):
        article.run(tmp_path / folder, targets=["jax@1.0", "torch@1.0"], repeats=4, epochs=1, seed=seed)
        return json.loads((tmp_path / folder / article.PLAN).read_text())["jobs"]

    first = jobs("a", 0)  # with environments that are missing, which is told at once
    assert Counter((job["model"], job["repeat"]) for job in first) == {
        (m, k): 1 for m in models.names() for k in range(4)
    }
    assert {tuple(job["targets"]) for job in first} == {("jax@1.0", "torch@1.0"), ("torch@1.0", "jax@1.0")}
    assert [job["repeat"] for job in first] == sorted(job["repeat"] for job in first)
    assert first == jobs("b", 0) != jobs("c", 1)


def test_the_command_ends_with_a_table_a_page_and_a_status(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    options = ["article", "-m", "mnist_mlp", "--scale", "0.005", "--repeats", "1", "--epochs", "2"]
    result = CliRunner().invoke(cli.main, [*options, "-b", "numpy", "-o", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    folder, page = (Path(line.split()[-1]) for line in result.stdout.splitlines()[-2:])
    assert (folder, page) == (tmp_path / "run", tmp_path / "run" / "article.html")
    assert page.read_text().startswith("<!doctype html>")
    (run,) = article.read(folder).runs["mnist_mlp"]
    assert (run.header["config"]["scale"], run.epochs[0]["samples"], run.epochs[0]["test_samples"]) == (0.005, 300, 50)
    again = CliRunner().invoke(cli.main, [*options, "-b", "numpy", "-o", str(tmp_path / "run")])
    assert again.exit_code == 1
    assert "holds a run already; choose another folder, or go on: to go on, run" not in again.output
    failed = CliRunner().invoke(cli.main, [*options, "-b", "numpy,jax", "-o", str(tmp_path / "other")])
    assert failed.exit_code == 1
    assert "mnist_mlp: jax: " in failed.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "numpy", "-m", "resnet"], "unknown model 'resnet'"),
        (["-b", "numpy", "--scale", "0"], "scale must be above 0 and at most 1, got 0"),
        (["-b", "null"], "null computes nothing, so it cannot train a model"),
        (["-b", "numpy", "--repeats", "0"], "Invalid value for '--repeats'"),
        (["--resume", "nowhere"], "Path 'nowhere' does not exist"),
        (["--resume", "."], "holds no run of shim article: there is no article.json"),
        (["--resume", ".", "--epochs", "2"], "--resume takes everything else from the folder"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environments, "python", lambda target: Path(sys.executable))
    result = CliRunner().invoke(cli.main, ["article", *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.output


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "it is written in schema 2, this version of shim reads 1"),
        ({"scale": "all"}, "'scale' is \"all\""),
        ({"models": {}}, "its jobs name models that it does not have"),
        (None, "Expecting value"),
    ],
)
def test_a_damaged_plan_is_named(folder, change, message):
    plan = folder / article.PLAN
    plan.write_text(json.dumps(json.loads(plan.read_text()) | change) if change else "")
    with pytest.raises(ValueError, match=r"article\.json is damaged: ") as caught:
        article.read(folder)
    assert message in str(caught.value)


# ---------------------------------------------------------------------------------------------------- published figures


def _log(set, model, backend):
    (found,) = [log for log in article_2017.logs() if (log.set, log.model, log.backend) == (set, model, backend)]
    return found


def test_published_figures_are_those_of_the_article():
    """Means over all epochs, and the ratios that the article printed (there TensorFlow's time / CNTK's)."""
    wanted = {"imdb_bidirectional_lstm": (276.65, 1.82), "mnist_cnn": (11.10, 0.70), "text_generator": (108.96, 1.08)}
    for model, (seconds, ratio) in wanted.items():
        tensorflow, cntk = (_log("2017-06 K80", model, backend) for backend in ("tensorflow", "cntk"))
        assert mean(tensorflow.seconds) == pytest.approx(seconds, abs=0.005)
        assert mean(tensorflow.seconds) / mean(cntk.seconds) == pytest.approx(ratio, abs=0.005)
        assert summaries.published_ratio(cntk, article_2017.logs()[:0]) is None
    log = _log("2017-06 K80", "mnist_mlp", "cntk")
    assert log.accuracy[-1] == 0.9796
    assert mean(log.seconds_per_thousand) == pytest.approx(2.76 / 60, rel=0.01)
    assert set(article_2017.SAMPLES) == set(models.names())


def test_copied_logs_are_left_out_and_the_other_kernel_is_named():
    sets = Counter(log.set for log in article_2017.logs())
    assert (sum(sets.values()), sets["2017-11 K80"], sets["2017-11 P100"]) == (108, 7, 12)
    named = {(log.set, log.label) for log in article_2017.logs() if log.cudnn_lstm}
    assert named == {("2017-11 K80", "K80 tensorflow cuDNN"), ("2017-11 P100", "P100 tensorflow cuDNN")}
    stored = json.loads(article_2017.FILE.read_text())
    assert len(stored["copies"]) == 8
    assert "Copyright (c) 2017 Max Woolf" in stored["licence"]


def test_the_file_of_published_figures_is_made_from_logs(tmp_path, monkeypatch):
    for name, (place, *_) in tool.SETS.items():
        (tmp_path / place).mkdir(parents=True)
        rows = f"epoch,elapsed,loss,acc,val_loss,val_acc\r\n0,{len(name)}.5,1.25,0.5,,0.75\r\n"
        (tmp_path / place / "mnist_mlp_cntk.csv").write_text(rows)
    (tmp_path / tool.FIRST / "LICENSE").write_text("as it is")
    monkeypatch.setattr(tool, "FILE", tmp_path / "made.json")
    assert tool.main([str(tmp_path)]) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["logs"][0] == {
        "set": "2017-06 K80",
        "model": "mnist_mlp",
        "backend": "cntk",
        "seconds": [11.5],
        "loss": [1.25],
        "accuracy": [0.75],
    }
    assert made["copies"][0] == {"set": "2017-07 K80", "model": "mnist_mlp", "backend": "cntk", "of": "2017-06 K80"}
    assert tool.main([]) == 2
