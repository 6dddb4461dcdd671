"""The published figures of 2017 that a new run is set beside: the logs of the article and of its two sequels.

They are the work of Max Woolf, under the MIT licence; ``article_2017.json`` names the repositories and their commits
and holds the licence. ``tools/article_2017.py`` made that file.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")

#: Training samples of an epoch. CIFAR-10's last, smaller batch was left out then.
SAMPLES = {
    "imdb_bidirectional_lstm": 25_000,
    "imdb_fasttext": 25_000,
    "mnist_mlp": 60_000,
    "mnist_cnn": 60_000,
    "cifar10_cnn": 49_984,
    "lstm_text_generation": 200_285,
    "text_generator": 200_285,
}

#: What to know before these figures are compared with others.
NOTES = (
    "The time of an epoch was taken around training and evaluation together, where the model has something to test on.",
    "Each log is a single run. The TensorFlow runs on a K80 were repeated a month later on the same kind of machine: "
    "their mean times moved by -4 % to +30 %, far more than the epochs of one run differ.",
    "In November 2017 TensorFlow ran the two plain LSTM models on GPUs with cuDNN's own kernel, which is another "
    "function: sigmoid gates where Keras then had hard_sigmoid, and a second bias. CNTK never had that kernel.",
    "Five of the six CNTK logs published for the K80 in November, and those of text_generator for both GPUs, are "
    "copies of June's, byte by byte. They are left out here, so CNTK's K80 figures are June's.",
    "Through Keras, CNTK evaluated a second output of text_generator by a further forward pass for each batch.",
    "The images of cifar10_cnn were shifted by one further CPU thread, which may have been the limit.",
    "imdb_fasttext is the variant with pairs of words, whose table has 1.2 million rows; Keras' own default is words.",
)


@dataclass(frozen=True)
class Log:
    """One published run: for each epoch its seconds, training loss and, where it was tested, accuracy."""

    set: str
    machine: str
    software: str
    model: str
    backend: str
    seconds: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None
    cudnn_lstm: bool

    @property
    def label(self) -> str:
        """Machine and backend, such as ``K80 cntk``; the month is in ``set``."""
        return f"{self.set.split(' ', 1)[1]} {self.backend}{' cuDNN' if self.cudnn_lstm else ''}"

    @property
    def seconds_per_thousand(self) -> list[float]:
        """Seconds, with evaluation, for 1,000 training samples: of each epoch but the first, which also compiled."""
        return [1000 * seconds / SAMPLES[self.model] for seconds in self.seconds[1:]]


@functools.cache
def logs() -> tuple[Log, ...]:
    """Return every published log that is not a copy of another."""
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    return tuple(_log(entry, stored["sets"][entry["set"]]) for entry in stored["logs"])


def _log(entry: dict[str, Any], of_set: dict[str, str]) -> Log:
    return Log(
        set=entry["set"],
        machine=of_set["machine"],
        software=of_set["software"],
        model=entry["model"],
        backend=entry["backend"],
        seconds=tuple(entry["seconds"]),
        loss=tuple(entry["loss"]),
        accuracy=entry["accuracy"] and tuple(entry["accuracy"]),
        cudnn_lstm=entry.get("cudnn_lstm", False),
    )
