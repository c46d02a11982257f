"""Sections that are chosen by name: the objective and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from retilt.algorithms.bc import BC
from retilt.algorithms.dpo import DPO
from retilt.algorithms.exp_rsft import ExpRSFT
from retilt.algorithms.ppo import PPO
from retilt.algorithms.reward_model import RewardModel
from retilt.algorithms.rsft import RSFT
from retilt.algorithms.top_rated import TopRated
from retilt.models.backbone import Model
from retilt.models.hstu import HSTU
from retilt.models.sasrec import SASRec
from retilt.types import InputError

AnyAlgorithm = Annotated[BC | RSFT | ExpRSFT | TopRated | DPO | PPO | RewardModel, Field(discriminator="name")]
AnyModel = Annotated[HSTU | SASRec, Field(discriminator="name")]
_MODELS: TypeAdapter[Model] = TypeAdapter(AnyModel)


def model_of(state: Mapping[str, Any], place: str) -> Model:
    """The settings of the model in a policy's ``state``. Raises InputError where this version has no such model."""
    try:
        return _MODELS.validate_python(state["model"])
    except ValidationError as problem:
        raise InputError(f"{place}: this version knows no such model as {state['model']}") from problem


def section(value: Any, default: str) -> Any:
    """``algorithm=x`` means ``algorithm.name=x``; a section without a name keeps the default one."""
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, Mapping) and "name" not in value:
        return {"name": default, **value}
    return value
