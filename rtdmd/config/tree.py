"""The whole configuration: one section per stage, and what no section can check alone."""

from __future__ import annotations

from pydantic import model_validator

from rtdmd.common.section import Section
from rtdmd.config.data import CacheTeacherParams, PreparePromptsParams
from rtdmd.config.model import AdapterParams, ModelParams
from rtdmd.config.results import EvaluateParams, PublishParams, ReportParams
from rtdmd.config.run import RunParams
from rtdmd.config.train_acdmd import TrainAcdmdParams
from rtdmd.config.train_rtdmd import TrainRtdmdParams


class Params(Section):
    """`params.yaml`: complete and explicit, so that a diff of two runs is a diff of two files."""

    run: RunParams
    model: ModelParams
    adapter: AdapterParams
    prepare_prompts: PreparePromptsParams
    cache_teacher: CacheTeacherParams
    train_acdmd: TrainAcdmdParams
    train_rtdmd: TrainRtdmdParams
    evaluate: EvaluateParams
    report: ReportParams
    publish: PublishParams

    @model_validator(mode="after")
    def _check(self) -> Params:
        stochastic = self.model.num_steps - 1
        if self.train_rtdmd.weights.policy > 0 and max(self.train_rtdmd.candidate_steps) >= stochastic:
            raise ValueError(
                f"train_rtdmd.candidate_steps: {list(self.train_rtdmd.candidate_steps)};"
                f" allowed: 0 to model.num_steps - 2 = {stochastic - 1} (the last step is deterministic)"
            )
        if self.train_rtdmd.weights.policy > 0 and self.model.eta == 0:
            raise ValueError(
                "model.eta: 0 with train_rtdmd.weights.policy above 0; allowed: above 0 (the policy needs noise)"
            )
        self._check_sharding()
        return self

    def _check_sharding(self) -> None:
        """What is shared is the frozen base, among several processes."""
        for name, section in (("train_acdmd", self.train_acdmd), ("train_rtdmd", self.train_rtdmd)):
            if section.sharding == "none":
                continue
            if self.adapter.mode == "full":
                raise ValueError(
                    f"{name}.sharding: {section.sharding} with adapter.mode: full; allowed: none (docs/training.md:"
                    " weights that are trained stay whole), or adapter.mode: lora"
                )
            if section.compile:
                raise ValueError(
                    f"{name}.sharding: {section.sharding} with {name}.compile: true; allowed: none, or compile: false"
                    " (a block is gathered by hooks, which do not compile)"
                )
            if section.processes == 1:
                raise ValueError(
                    f"{name}.sharding: {section.sharding} with {name}.processes: 1; allowed: none, or several processes"
                )
