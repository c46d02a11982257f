"""The configuration of every job: one class a job, every key with its default, meaning and allowed range.

A field made with ``free`` is no part of the run's identity: with another value the same command continues the same run.
"""

from __future__ import annotations

from retilt.config.data import PrepareConfig, SimulateConfig
from retilt.config.evaluate import EvaluateConfig
from retilt.config.named import AnyAlgorithm, AnyModel, model_of
from retilt.config.train import Parallel, Placement, Precision, TableOptimizer, TrainConfig, place_table
from retilt.settings import build, config_hash, dump_yaml, identity_hash, keys, load_yaml, plain

__all__ = [
    "AnyAlgorithm",
    "AnyModel",
    "EvaluateConfig",
    "Parallel",
    "Placement",
    "Precision",
    "PrepareConfig",
    "SimulateConfig",
    "TableOptimizer",
    "TrainConfig",
    "build",
    "config_hash",
    "dump_yaml",
    "identity_hash",
    "keys",
    "load_yaml",
    "model_of",
    "place_table",
    "plain",
]
