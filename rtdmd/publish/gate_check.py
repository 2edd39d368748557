"""The gate's own program: `python -I gate_check.py FOLDER`, a fresh process with released packages and nothing of ours.

FOLDER holds request.json (the Python of the model card in it) and tensors.safetensors, and becomes the working
directory, in which the names that the card uses lead to the export and to the base model. It writes answer.json: what
was measured, and every reason to refuse the export. It judges nothing that it cannot see here, and repairs nothing.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

BENIGN = ("requires torchvision",)  # said at import where torchvision is not installed; our packages do without it
LIBRARIES = ("diffusers", "transformers", "peft", "huggingface_hub", "accelerate", "py.warnings")
WEIGHTS = "pytorch_lora_weights.safetensors"
Tensors = dict[str, Any]


class Recorder(logging.Handler):
    """Every warning and error that a library logs or warns of, in the order of their coming."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = f"{record.name}: {record.getMessage()}".strip()
        if not any(text in message for text in BENIGN):
            self.messages.append(message)


def listen() -> Recorder:
    """Install a recorder on the root logger and on the libraries' own (which do not propagate)."""
    recorder = Recorder()
    logging.captureWarnings(True)
    for name in ("", *LIBRARIES):
        logging.getLogger(name).addHandler(recorder)
    return recorder


def run_card(blocks: list[str]) -> Any:
    """Run the card's Python blocks one after the other, as a reader would; the class of the trained sampler's scheduler
    where one of them has it. A block that begins with the import of torch is a program of its own, and the models of
    the one before it are given back first."""
    scheduler = None
    names: dict[str, Any] = {}
    for number, code in enumerate(blocks, start=1):
        if code.startswith("import torch\n"):
            give_back(names)
            names = {"__name__": "__main__"}
        exec(compile(code, f"README.md, block {number}", "exec"), names)
        scheduler = names.get("CPSScheduler", scheduler)
    give_back(names)
    return scheduler


def give_back(names: dict[str, Any]) -> None:
    """Forget the models among a program's names: its functions, which may outlive it, hold on to all names."""
    from diffusers import DiffusionPipeline
    from torch import nn

    for name in [name for name, value in names.items() if isinstance(value, DiffusionPipeline | nn.Module)]:
        del names[name]
    gc.collect()  # a model may hold itself by a circle


def pictures(folder: Path) -> list[str]:
    """What is wrong with the pictures that the card's blocks saved."""
    from PIL import Image

    problems = []
    found = sorted(folder.glob("sample*.png"))
    if not found:
        problems.append("the card's snippet saved no picture")
    for path in found:
        with Image.open(path) as image:
            channels = image.convert("RGB").split()
            if all(len(set(channel.tobytes())) == 1 for channel in channels):
                problems.append(f"{path.name}, drawn by the card's snippet, is of one colour")
    return problems


def adapter_keys(transformer: Any, path: Path, adapter: str) -> tuple[int, int]:
    """(tensors of the file that arrived in the transformer unchanged, tensors that are in either)."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(path)
    held = {
        "transformer." + name.replace(f".{adapter}.", "."): value.detach().cpu()
        for name, value in transformer.named_parameters()
        if ".lora_" in name and f".{adapter}." in name
    }
    equal = [key for key in stored if key in held and torch.equal(stored[key].float(), held[key].float())]
    return len(equal), len(stored.keys() | held.keys())


def merged_keys(transformer: Any, path: Path) -> tuple[int, int]:
    """As `adapter_keys`, for a file of all weights, of which one is read at a time."""
    import torch
    from safetensors import safe_open

    held = transformer.state_dict()
    with safe_open(path, framework="pt") as file:
        stored = set(file.keys())
    equal = 0
    for key in stored & held.keys():
        with safe_open(path, framework="pt") as file:  # anew, since what was read of an open file stays in memory
            equal += torch.equal(file.get_tensor(key).float(), held[key].cpu().float())
    return equal, len(stored | held.keys())


class Bench:
    """A pipeline of the base model in float32, and what it gives on the fixed inputs."""

    def __init__(self, request: dict[str, Any], tensors: Tensors, cps: Any) -> None:
        import diffusers
        import torch

        self.request = request
        self.tensors = tensors
        self.cps = cps
        kind = getattr(diffusers, request["pipeline"])
        parts = dict.fromkeys(request["left_out"])
        self.pipe = kind.from_pretrained(request["base"], dtype=torch.float32, **parts)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(request["device"])

    def scheduler(self, eta: float) -> Any:
        """The folder's scheduler, as the card sets it, at an η."""
        import diffusers

        folder = self.request["export"]
        if eta in (0.0, 1.0):
            return diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(
                folder, subfolder="scheduler", stochastic_sampling=eta == 1.0
            )
        scheduler = self.cps.from_pretrained(folder, subfolder="scheduler")
        scheduler.eta = eta
        return scheduler

    def outputs(self) -> Tensors:
        """By η, the latents at the end of the pipeline's own loop, from the fixed latents, with the fixed
        seed's fresh noise."""
        import torch

        inputs = {name: self.tensors[key].to(self.pipe.device) for name, key in self.request["inputs"].items()}
        found: Tensors = {}
        last: Tensors = {}

        def keep(_pipe: Any, _step: int, _timestep: Any, tensors: Tensors) -> Tensors:
            last.update(tensors)
            return {}

        for eta in self.request["etas"]:
            self.pipe.scheduler = self.scheduler(float(eta))
            torch.manual_seed(self.request["seed"])
            with torch.no_grad():
                self.pipe(**inputs, **self.request["settings"], output_type="latent", callback_on_step_end=keep)
            found[eta] = last["latents"].cpu()
        return found


def distance(one: Tensors, other: Tensors) -> dict[str, float]:
    """Largest absolute difference, by η."""
    return {eta: float((one[eta].float() - other[eta].float()).abs().max()) for eta in one}


def forms(bench: Bench, recorder: Recorder) -> dict[str, Any]:
    """Load each published form, and the two stages as two adapters, and compare with the student in memory; one
    transformer is held at a time."""
    import diffusers
    import torch

    request = bench.request
    base = bench.outputs()
    found = {}
    folder = Path(request["export"])
    stages = request["stages"]

    def compared(form: str, keys: tuple[int, int]) -> dict[str, Any]:
        outputs = bench.outputs()
        student = {eta: bench.tensors[f"{form}.{eta}"] for eta in request["etas"]}
        return {
            "keys": list(keys),
            "from_student": distance(outputs, student),
            "from_base": distance(outputs, base),
            "scale": {eta: float(value.float().pow(2).mean().sqrt()) for eta, value in student.items()},
        }

    transformer = bench.pipe.transformer
    if "lora" in request["forms"]:
        transformer.load_lora_adapter(str(folder), weight_name=WEIGHTS, adapter_name="published")
        found["lora"] = compared("lora", adapter_keys(transformer, folder / WEIGHTS, "published"))
        transformer.delete_adapters("published")
    if stages:
        start = len(recorder.messages)
        for name in stages:
            transformer.load_lora_adapter(".", weight_name=f"{name}.safetensors", adapter_name=name)
        told = "Already found a `peft_config`"  # two adapters at once are the point
        recorder.messages[start:] = [text for text in recorder.messages[start:] if told not in text]
        transformer.set_adapters(stages)
        keys = [adapter_keys(transformer, Path(f"{name}.safetensors"), name) for name in stages]
        found["stacked"] = compared("lora", (sum(k for k, _ in keys), sum(n for _, n in keys)))
        transformer.delete_adapters(stages)
    if "merged" in request["forms"]:
        del transformer
        bench.pipe.transformer = None  # the base's goes before the file's comes
        gc.collect()
        bench.pipe.transformer, info = getattr(diffusers, request["transformer"]).from_pretrained(
            str(folder), subfolder="transformer", dtype=torch.float32, output_loading_info=True
        )
        if any(info.values()):
            recorder.messages.append(f"diffusers: loading the merged transformer: {info}")
        bench.pipe.transformer.to(request["device"]).eval()
        weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
        found["merged"] = compared("merged", merged_keys(bench.pipe.transformer, weights))
    return found


def main(folder: Path) -> None:
    """Run the whole check in ``folder`` and write answer.json."""
    os.chdir(folder)
    recorder = listen()
    import torch
    from safetensors.torch import load_file

    request = json.loads(Path("request.json").read_text(encoding="utf-8"))
    torch.set_num_threads(request["threads"])
    scheduler = run_card(request["blocks"])
    problems = pictures(Path())
    bench = Bench(request, load_file("tensors.safetensors"), scheduler)
    answer = {
        "forms": forms(bench, recorder),
        "problems": problems,
        "warnings": recorder.messages,
        "ours": sorted(name for name in sys.modules if re.fullmatch(r"rtdmd(\..*)?", name)),
    }
    Path("answer.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
