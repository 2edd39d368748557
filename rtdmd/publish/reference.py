"""The student in memory with which the gate compares an export: adapters put on the base by PEFT itself.

It shares no step with what is exported. Each adapter is set up from the LoraConfig that its own file tells, as PEFT
understands it, not from what `adapter` took out of it; and nothing is composed or merged.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rtdmd.backbones import Backbone
from rtdmd.backbones.sampling import Velocity
from rtdmd.common.errors import RtdmdError
from rtdmd.common.lazy_tensors import fill
from rtdmd.publish.adapter import NOT_PLAIN, Adapter, check_belongs

STRENGTH = frozenset({"r", "lora_alpha", "target_modules", "bias", *NOT_PLAIN})  # what decides what an adapter adds
BFLOAT16_STEP = 2.0**-8  # largest relative error of one rounding to bfloat16
SLACK = 1e-6  # of the two sums' own rounding, in units of the largest weight


def stacked_student(backbone: Backbone, adapters: Mapping[str, Adapter]) -> Velocity:
    """Velocity (x, sigma, cond) of the backbone with every adapter on it, by PEFT, each at its own scale.

    UserError where an adapter does not belong to the transformer.
    """
    from peft import LoraConfig, set_peft_model_state_dict

    transformer: Any = backbone.transformer
    for name, adapter in adapters.items():
        check_belongs(adapter, backbone, name)
    for name, adapter in adapters.items():
        told: dict[str, Any] = {"r": adapter.rank, "lora_alpha": adapter.alpha, "target_modules": adapter.modules()}
        told |= {key: value for key, value in (adapter.config or {}).items() if key in STRENGTH and value is not None}
        told["r"] = int(told["r"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are the point
            transformer.add_adapter(LoraConfig(**told), adapter_name=name)
        set_peft_model_state_dict(transformer, adapter.tensors, adapter_name=name)
    transformer.set_adapters(list(adapters))
    return partial(backbone.velocity, transformer)


def whole_student(backbone: Backbone, weights: Mapping[str, Tensor]) -> Velocity:
    """Velocity (x, sigma, cond) of the backbone with these weights, no adapters, in the place of its transformer's."""
    fill(backbone.transformer, weights)
    return partial(backbone.velocity, backbone.transformer)


def check_merged(weights: Mapping[str, Tensor], backbone: Backbone) -> None:
    """RtdmdError unless each of the merged ``weights`` is the base's with what PEFT's active adapters add to it, within
    one rounding to the weights' own dtype.

    It is for dtypes below float32: there the cast moves a student by more than the gate allows, so that it cannot be
    held against the student in memory.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    step = BFLOAT16_STEP if next(iter(weights.values())).dtype == torch.bfloat16 else 0.0
    for name, module in backbone.transformer.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        own = layer.get_base_layer().weight.detach().float()
        for adapter in layer.active_adapters:
            own = own + layer.get_delta_weight(adapter).detach().float()
        merged = weights[f"{name}.weight"].float().to(own.device)
        off = ((merged - own).abs() - step * own.abs()).max().item()
        if not off <= SLACK * max(1.0, own.abs().max().item()):
            raise RtdmdError(
                f"the gate refuses this export, nothing was published: {name}.weight is not the base's with what the"
                f" adapters add ({off:.1e} more than one rounding)"
            )
