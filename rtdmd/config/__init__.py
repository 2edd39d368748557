"""The one strict configuration tree behind `params.yaml`.

One file per section; unknown keys, wrong types and impossible combinations are one-line errors. `rtdmd params world`
prints a complete file, `rtdmd schema` the JSON schema.
"""

from rtdmd.config.data import CacheTeacherParams, PreparePromptsParams
from rtdmd.config.load import load_params, parse_params
from rtdmd.config.model import AdapterParams, ModelParams
from rtdmd.config.presets import PRESETS, RECIPES, preset
from rtdmd.config.real import NOTES
from rtdmd.config.results import EvaluateParams, PublishParams, ReportParams, SuiteParams
from rtdmd.config.rewards import RewardParams, reward_params
from rtdmd.config.run import RunParams
from rtdmd.config.suites import SetParams
from rtdmd.config.train_acdmd import TrainAcdmdParams
from rtdmd.config.train_rtdmd import TermWeights, TrainRtdmdParams
from rtdmd.config.training import ConsistencyParams, OptimizerParams
from rtdmd.config.tree import Params
from rtdmd.config.watch import WatchParams

__all__ = [
    "NOTES",
    "PRESETS",
    "RECIPES",
    "AdapterParams",
    "CacheTeacherParams",
    "ConsistencyParams",
    "EvaluateParams",
    "ModelParams",
    "OptimizerParams",
    "Params",
    "PreparePromptsParams",
    "PublishParams",
    "ReportParams",
    "RewardParams",
    "RunParams",
    "SetParams",
    "SuiteParams",
    "TermWeights",
    "TrainAcdmdParams",
    "TrainRtdmdParams",
    "WatchParams",
    "load_params",
    "parse_params",
    "preset",
    "reward_params",
]
