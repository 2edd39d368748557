"""The published folder in plain diffusers equals the in-memory student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

from rtdmd.backbones import Conditioning, load_backbone
from rtdmd.backbones.protocol import PUBLISHED
from rtdmd.backbones.sampling import rollout
from rtdmd.common.errors import UserError
from rtdmd.common.files import load_tensors, write_json
from rtdmd.config import Params
from rtdmd.publish.adapter import Adapter, compose, read_adapter, write_lora
from rtdmd.publish.scheduler import scheduler_config
from rtdmd.train.adapters import load_student
from tests.workspace import STAGES, make_workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path, tiny_clip: Path) -> tuple[Path, Params]:
    root = tmp_path_factory.mktemp("publish")
    return root, make_workspace(root, tiny_teacher, tiny_clip)


@pytest.fixture(scope="module")
def folder(workspace: tuple[Path, Params]) -> Path:
    root, params = workspace
    adapters = [read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES]
    write_lora(compose(adapters), root / "export" / PUBLISHED)
    sigmas = load_backbone(params.model, vae=False, root=root).sigmas(4).tolist()
    write_json(root / "export" / "scheduler" / "scheduler_config.json", scheduler_config(sigmas, stochastic=True))
    return root / "export"


def _pipeline(root: Path, folder: Path | None, **scheduler: bool) -> StableDiffusion3Pipeline:
    """Plain diffusers, as the card's snippet does it."""
    pipe = StableDiffusion3Pipeline.from_pretrained(
        root / "data" / "world" / "teacher", text_encoder_3=None, tokenizer_3=None
    )
    pipe.set_progress_bar_config(disable=True)
    if folder is not None:
        pipe.load_lora_weights(folder, weight_name=PUBLISHED)
        pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler", **scheduler)
    return pipe


def _sample(pipe: StableDiffusion3Pipeline, latents: torch.Tensor) -> torch.Tensor:
    return pipe(
        ["a photo of a red circle", "a photo of two crosses"],
        num_inference_steps=4,
        guidance_scale=1.0,
        height=36,
        width=36,
        max_sequence_length=1,
        latents=latents.clone(),
        output_type="latent",
    ).images


def test_plain_diffusers_gives_the_students_latents(workspace: tuple[Path, Params], folder: Path) -> None:
    root, params = workspace
    latents = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(3))
    published = _sample(_pipeline(root, folder, stochastic_sampling=False), latents)
    backbone = load_backbone(params.model, text=True, root=root)
    cond = backbone.encode(["a photo of a red circle", "a photo of two crosses"])
    student = load_student(params, backbone, "train_rtdmd", root)
    with torch.no_grad():
        expected = rollout(student, latents, cond, backbone.sigmas(4), 0.0, None)[-1]
    assert (published - expected).abs().max() < 1e-4
    without = _sample(_pipeline(root, None), latents)
    assert (published - without).abs().max() > 0.1


def test_renoising_is_the_samplers_own_step_at_eta_one(workspace: tuple[Path, Params], folder: Path) -> None:
    """stochastic_sampling: x_tau = (1 - tau) x0 + tau z, the CPS step with eta = 1, for the same z."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(4)
    x, v = torch.randn(2, 1, 4, 9, 9, generator=torch.Generator().manual_seed(0)).unbind(0)
    got = scheduler.step(v, scheduler.timesteps[0], x, generator=torch.Generator().manual_seed(7)).prev_sample
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7))
    expected = rollout(
        lambda *_: v, x, Conditioning({"none": torch.zeros(1)}), torch.tensor([1.0, 0.9, 0.0]), 1.0, noise[None]
    )[1]
    assert torch.allclose(got, expected, atol=1e-5)


def test_every_tensor_is_consumed_and_the_file_is_the_same_every_time(
    workspace: tuple[Path, Params], folder: Path, tmp_path: Path
) -> None:
    root, params = workspace
    tensors, metadata = load_tensors(folder / PUBLISHED)
    pipe = _pipeline(root, folder)
    loaded = {name: value for name, value in pipe.transformer.named_parameters() if ".lora_" in name}
    assert len(loaded) == len(tensors)
    total = sum(value.detach().double().abs().sum().item() for value in loaded.values())
    assert total == pytest.approx(sum(value.double().abs().sum().item() for value in tensors.values()))
    config = pipe.transformer.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (2 * params.adapter.rank, 2 * params.adapter.rank)
    assert '"transformer.lora_alpha"' in metadata["lora_adapter_metadata"]
    adapters = [read_adapter(root / "results" / stage / "generator.safetensors") for stage in STAGES]
    write_lora(compose(adapters), tmp_path / PUBLISHED)
    assert (tmp_path / PUBLISHED).read_bytes() == (folder / PUBLISHED).read_bytes()


def test_the_header_takes_what_is_told_and_another_pipeline_writes_too(folder: Path, tmp_path: Path) -> None:
    adapter = Adapter({"m.lora_A.weight": torch.ones(2, 3), "m.lora_B.weight": torch.ones(4, 2)}, 2, 4.0)
    write_lora(adapter, tmp_path / PUBLISHED, {"told": "x"}, pipeline="FluxPipeline")
    tensors, header = load_tensors(tmp_path / PUBLISHED)
    assert set(tensors) == {"transformer.m.lora_A.weight", "transformer.m.lora_B.weight"}
    assert header["told"] == "x"
    with pytest.raises(UserError, match=r"diffusers' AutoencoderKL writes no LoRA files"):
        write_lora(adapter, tmp_path / PUBLISHED, pipeline="AutoencoderKL")
