"""Write ``shim/article_2017.json``, the published figures of 2017, from the logs of their two repositories.

    git clone https://github.com/minimaxir/keras-cntk-benchmark logs/keras-cntk-benchmark
    git clone https://github.com/minimaxir/deep-learning-cpu-gpu-benchmark logs/deep-learning-cpu-gpu-benchmark
    python -m tools.article_2017 logs

Logs that are copies of others, byte by byte, are named and left out: nothing was measured for them.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "shim" / "article_2017.json"
FIRST, SECOND = "keras-cntk-benchmark", "deep-learning-cpu-gpu-benchmark"
COMMITS = {FIRST: "5b95f4640f371e0b532f0a14f6bb05466f41eef1", SECOND: "08adcf499e9859db790a569716454391f450db13"}

JUNE = "TensorFlow (1.1, by its date), CNTK 2.0, Keras between 2.0.4 and 2.0.5, CUDA 8.0, cuDNN 5"
JULY, NOVEMBER = "TensorFlow 1.2.1", "TensorFlow 1.4, CNTK 2.2, Keras 2.1"
#: name of a set -> folder, date, machine, software
SETS = {
    "2017-06 K80": (f"{FIRST}/logs", "2017-06-08", "one Tesla K80 GPU, Google Compute Engine", JUNE),
    "2017-07 K80": (f"{SECOND}/logs/gpu", "2017-07-04", "one Tesla K80 GPU, Google Compute Engine", JULY),
    "2017-11 K80": (f"{FIRST}/v2/logs/k80", "2017-11-27", "one Tesla K80 GPU, Google Compute Engine", NOVEMBER),
    "2017-11 P100": (f"{FIRST}/v2/logs/p100", "2017-11-27", "one Tesla P100 GPU, Google Compute Engine", NOVEMBER),
}
for count in (8, 16, 32, 64):
    machine = f"{count} vCPUs (Skylake), Google Compute Engine"
    SETS[f"2017-07 {count} vCPU"] = (f"{SECOND}/logs/cpu-pip/cpu{count}", "2017-07-04", machine, f"{JULY} from PyPI")
    compiled = f"{JULY} compiled with AVX2 and FMA"
    folder = f"{SECOND}/logs/cpu-compiled/cpu{count}"
    SETS[f"2017-07 {count} vCPU, compiled"] = (folder, "2017-07-04", machine, compiled)
for count in (16, 32):
    machine = f"{count} vCPUs (Skylake), Google Compute Engine"
    SETS[f"2017-11 {count} vCPU"] = (f"{FIRST}/v2/logs/cpu{count}", "2017-11-27", machine, f"{NOVEMBER} from PyPI")

NAMES = {"text_generator_keras": "text_generator"}  # the others have here the names that they had there
CUDNN = ("imdb_bidirectional_lstm", "lstm_text_generation")


def main(arguments: list[str]) -> int:
    """Read the folder that the one argument names and write the file; return the exit status."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    logs, copies = _logs(folder)
    head = {
        "origin": {f"https://github.com/minimaxir/{name}": commit for name, commit in COMMITS.items()},
        "licence": (folder / FIRST / "LICENSE").read_text(),
        "columns": "a value for each epoch, in order: seconds with evaluation, training loss, test accuracy or null",
        "sets": {name: {"date": date, "machine": m, "software": s} for name, (_, date, m, s) in SETS.items()},
        "copies": copies,
    }
    lines = ",\n".join(f"  {json.dumps(log)}" for log in logs)
    FILE.write_text(json.dumps(head, indent=1)[:-2] + f',\n "logs": [\n{lines}\n ]\n}}\n')
    print(f"{len(logs)} logs, {len(copies)} copies left out: {FILE}")
    return 0


def _logs(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    seen: dict[bytes, str] = {}
    logs, copies = [], []
    for name, (place, *_) in SETS.items():
        for path in sorted((folder / place).glob("*.csv")):
            model, _, backend = path.stem.rpartition("_")
            key = {"set": name, "model": NAMES.get(model, model), "backend": backend}
            if (content := path.read_bytes()) in seen:
                copies.append(key | {"of": seen[content]})
                continue
            seen[content] = name
            rows = list(csv.DictReader(content.decode().splitlines()))
            accuracy = [round(float(row["val_acc"]), 5) if row.get("val_acc") else None for row in rows]
            log: dict[str, Any] = key | {
                "seconds": [round(float(row["elapsed"]), 3) for row in rows],
                "loss": [round(float(row["loss"]), 5) for row in rows],
                "accuracy": accuracy if any(accuracy) else None,
            }
            is_gpu = "vCPU" not in name
            if name.startswith("2017-11") and is_gpu and backend == "tensorflow" and model in CUDNN:
                log["cudnn_lstm"] = True
            logs.append(log)
    return logs, copies


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
