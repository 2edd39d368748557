"""The whole configuration: one section per stage, and what no section can check alone."""

from __future__ import annotations

from pydantic import model_validator

from rtdmd.common.parsing import did_you_mean
from rtdmd.common.section import Section
from rtdmd.config.data import CacheTeacherParams, PreparePromptsParams
from rtdmd.config.model import AdapterParams, ModelParams
from rtdmd.config.results import EvaluateParams, PublishParams, ReportParams
from rtdmd.config.run import RunParams
from rtdmd.config.train_acdmd import TrainAcdmdParams
from rtdmd.config.train_rtdmd import GRADED, TrainRtdmdParams
from rtdmd.config.watch import WatchParams
from rtdmd.methods import RECIPES


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

    @property
    def training_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts that are trained on, in the order of the stages, each once."""
        return tuple(dict.fromkeys((self.train_acdmd.prompts, self.train_rtdmd.prompts)))

    @property
    def evaluation_sets(self) -> tuple[str, ...]:
        """Names of the sets of prompts that are evaluated or watched, in the order in which they are named, each
        once."""
        return tuple(dict.fromkeys(suite.prompts for judging in self.judging.values() for suite in judging.suites))

    @property
    def judging(self) -> dict[str, EvaluateParams | WatchParams]:
        """What has suites and their scorers, by dotted key: the evaluation, and the training stages that are
        watched."""
        watched = {
            f"{name}.watch": section.watch
            for name, section in (("train_acdmd", self.train_acdmd), ("train_rtdmd", self.train_rtdmd))
            if section.watch.every
        }
        return {"evaluate": self.evaluate, **watched}

    def layout(self, stage: str) -> tuple[int, int]:
        """On how many nodes a stage runs, and in how many processes on each."""
        trainings = {"train_acdmd": self.train_acdmd.processes, "train_rtdmd": self.train_rtdmd.processes}
        processes = trainings.get(stage, 1)
        each = min(processes, self.run.gpus_per_node or processes)
        return processes // each, each

    @property
    def judged_stages(self) -> tuple[str, ...]:
        """The training stages that the evaluated models come from; the second starts from the first's student."""
        if "train_rtdmd" in self.evaluate.models:
            return ("train_acdmd", "train_rtdmd")
        return ("train_acdmd",) if "train_acdmd" in self.evaluate.models else ()

    @model_validator(mode="after")
    def _check(self) -> Params:
        self._check_sets()
        self._check_sizes()
        self._check_models()
        self._check_noise()
        self._check_guidance()
        self._check_nodes()
        self._check_sharding()
        self._check_mode()
        return self

    def _check_sets(self) -> None:
        """Every set that a stage names is there, and none is both trained on and evaluated."""
        sets = self.prepare_prompts.sets
        trained = {
            "train_acdmd.prompts": self.train_acdmd.prompts,
            "train_rtdmd.prompts": self.train_rtdmd.prompts,
        }
        judged = {
            f"{section}.suites: {suite.name}: prompts": suite.prompts
            for section, judging in self.judging.items()
            for suite in judging.suites
        }
        for key, name in (*trained.items(), *judged.items()):
            if name not in sets:
                known = ", ".join(sets)
                raise ValueError(
                    f"{key}: {name!r}; allowed: one of prepare_prompts.sets: {known}{did_you_mean(name, sets)}"
                )
        for key, name in trained.items():
            for section, judging in self.judging.items():
                if name in [suite.prompts for suite in judging.suites]:
                    use = "evaluated" if section == "evaluate" else "watched"
                    raise ValueError(
                        f"{key}: {name!r}, which is {use} ({section}.suites); allowed: a set that is not, of"
                        " prepare_prompts.sets"
                    )

    def _check_sizes(self) -> None:
        """A suite of squares has another side than images that are not square are high: sizes go by it."""
        for section, judging in self.judging.items():
            for suite in judging.suites:
                if self.model.width is not None and suite.resolution == self.model.resolution:
                    raise ValueError(
                        f"{section}.suites: {suite.name}: resolution: {suite.resolution} with model.width:"
                        f" {self.model.width}; allowed: null, the model's own size, or the side of another square"
                    )

    def _check_models(self) -> None:
        """The student's base is a model of its own where it is not the teacher's."""
        if "student_base" in self.evaluate.models and self.model.student is None:
            raise ValueError(
                "evaluate.models: student_base with model.student: null, where the student's base is the teacher's;"
                " allowed: teacher_few_step, or a base of its own in model.student"
            )

    def _check_noise(self) -> None:
        """Terms that are made of the sampler's stochastic steps need some, and noise in them."""
        p = self.train_rtdmd
        stochastic = self.model.num_steps - 1
        eta = self.model.eta
        users = {
            "weights.policy above 0": (p.weights.policy > 0, "weights.policy: 0"),
            "weights.reference_kl above 0": (p.weights.reference_kl > 0, "weights.reference_kl: 0"),
            "matching_path: reward": (p.matching_path == "reward", "matching_path: last_step"),
        }
        used = {f"train_rtdmd.{name}": f"train_rtdmd.{off}" for name, (on, off) in users.items() if on}
        for user, off in used.items():
            if stochastic == 0:
                raise ValueError(
                    f"model.num_steps: 1 with {user}; allowed: 2 or more, or {off} (the last step is deterministic)"
                )
            if eta == 0:
                raise ValueError(f"model.eta: 0 with {user}; allowed: above 0, or {off} (the policy needs noise)")
        graded = [name for name in GRADED if name != "policy" and getattr(p.weights, name) > 0]
        if stochastic > 0 and (used or graded) and max(p.candidate_steps) >= stochastic:
            fitting = [k for k in p.candidate_steps if k < stochastic] or list(range(stochastic))
            together = [f"candidate_steps: {fitting}"]
            if p.trained_steps > len(fitting):
                together.append(f"trained_steps: {len(fitting)}")
            if "candidate_steps" in RECIPES["train_rtdmd"].get(p.recipe, {}):
                together.append("recipe: custom")
            raise ValueError(
                f"train_rtdmd.candidate_steps: {list(p.candidate_steps)};"
                f" allowed: 0 to model.num_steps - 2 = {stochastic - 1} (the last step is deterministic), as"
                f" {', '.join(together)}"
            )
        if graded and p.share_initial and (stochastic == 0 or eta == 0):
            key = "model.num_steps: 1" if stochastic == 0 else "model.eta: 0"
            raise ValueError(
                f"train_rtdmd.share_initial: true with {key} and train_rtdmd.weights.{graded[0]} above 0: the images of"
                " a group are all equal, and so are their rewards; allowed: false"
            )

    def _check_guidance(self) -> None:
        """A range of the teacher's guidance is one, around the weight at which the teacher is judged."""
        for name, section in (("train_acdmd", self.train_acdmd), ("train_rtdmd", self.train_rtdmd)):
            if section.guidance_range is None:
                continue
            low, high = section.guidance_range
            if not 1 <= low <= self.model.guidance <= high or self.model.guidance == 1:
                raise ValueError(
                    f"{name}.guidance_range: [{low:g}, {high:g}] with model.guidance: {self.model.guidance:g}; allowed:"
                    " null, or two numbers from 1, ascending, with model.guidance, above 1, between them"
                )

    def _check_mode(self) -> None:
        """Full mode trains no adapter: there is none to scale, and none to publish."""
        if self.adapter.mode != "full":
            return
        if self.train_rtdmd.annealing.guidance > 0:
            raise ValueError(
                f"train_rtdmd.annealing.guidance: {self.train_rtdmd.annealing.guidance:g} with adapter.mode: full,"
                " which has no adapter to scale; allowed: 0, or adapter.mode: lora"
            )
        if self.publish.format != "merged":
            raise ValueError(
                f"publish.format: {self.publish.format} with adapter.mode: full, which trains no adapter;"
                " allowed: merged, or adapter.mode: lora"
            )

    def _check_nodes(self) -> None:
        """Every node takes as many processes as another."""
        per_node = self.run.gpus_per_node
        for name, section in (("train_acdmd", self.train_acdmd), ("train_rtdmd", self.train_rtdmd)):
            if per_node and section.processes > per_node and section.processes % per_node:
                raise ValueError(
                    f"{name}.processes: {section.processes} with run.gpus_per_node: {per_node}; allowed: 1 to"
                    f" {per_node}, a multiple of {per_node}, or run.gpus_per_node: null (all on one machine)"
                )

    def _check_sharding(self) -> None:
        """What is shared is the frozen base, among several processes."""
        for name, section in (("train_acdmd", self.train_acdmd), ("train_rtdmd", self.train_rtdmd)):
            if (section.sharding == "hybrid") != (section.shard_group is not None):
                allowed = "null" if section.shard_group else "the number of processes that share a base"
                group = section.shard_group or "null"
                raise ValueError(
                    f"{name}.shard_group: {group} with {name}.sharding: {section.sharding}; allowed: {allowed}"
                )
            if section.sharding == "none":
                continue
            if self.adapter.mode == "full":
                raise ValueError(
                    f"{name}.sharding: {section.sharding} with adapter.mode: full; allowed: none"
                    " (docs/evidence/training.md: weights that are trained stay whole), or adapter.mode: lora"
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
            if section.shard_group is not None and section.processes % section.shard_group:
                raise ValueError(
                    f"{name}.shard_group: {section.shard_group} with {name}.processes: {section.processes}; allowed:"
                    " a number that divides the processes"
                )
