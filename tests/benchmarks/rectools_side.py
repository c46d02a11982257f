"""The RecTools side of against_rectools.py: runs in RecTools' own environment, trains one epoch per line of input.

Answers each line with the seconds of the epoch's training alone (batches, forward, backward, optimizer): Lightning's
set-up, RecTools' rebuilding of its data set and validation lie outside the two hooks that are timed.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer  # type: ignore[import-not-found]
from rectools import Columns  # type: ignore[import-not-found]
from rectools.dataset import Dataset  # type: ignore[import-not-found]
from rectools.models import HSTUModel  # type: ignore[import-not-found]


class EpochSeconds(Callback):  # type: ignore[misc]
    """Wall-clock and processor seconds of the last training epoch, and its mean loss."""

    seconds = 0.0
    cpu_seconds = 0.0
    loss = 0.0

    def on_train_epoch_start(self, trainer, module):
        self.seconds, self.cpu_seconds = -time.perf_counter(), -time.process_time()

    def on_train_epoch_end(self, trainer, module):
        self.seconds += time.perf_counter()
        self.cpu_seconds += time.process_time()
        self.loss = float(trainer.callback_metrics.get("train_loss", float("nan")))


def read(path: str) -> Dataset:
    """The training events that against_rectools.py wrote: users, items, times in seconds, in order."""
    events = np.load(path)
    frame = pd.DataFrame(
        {
            Columns.User: events["user"],
            Columns.Item: events["item"],
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(events["time"], unit="us"),
        }
    )
    return Dataset.construct(frame)


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, callbacks=[EpochSeconds()],
        )  # fmt: skip

    model = HSTUModel(
        n_blocks=settings["blocks"],
        n_heads=settings["heads"],
        n_factors=settings["width"],
        session_max_len=settings["max_length"],
        dropout_rate=settings["dropout"],
        batch_size=settings["batch_users"],
        lr=settings["learning_rate"],
        loss="softmax",
        lightning_module_kwargs={"logits_t": settings["temperature"]},
        get_trainer_func=trainer,
    )
    dataset = read(settings["events"])
    for line in sys.stdin:
        if line.strip() != "epoch":
            break
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        # RecTools trains with a copy of its trainer, callbacks included: the copy's hold the seconds.
        timed = next(each for each in model.fit_trainer.callbacks if isinstance(each, EpochSeconds))
        frame = model.data_preparator.train_dataset.interactions.df
        positions = len(frame) - frame[Columns.User].nunique()
        answer = {"seconds": timed.seconds, "cpu_seconds": timed.cpu_seconds, "loss": timed.loss}
        print(json.dumps({**answer, "positions": positions}), flush=True)


if __name__ == "__main__":
    main()
