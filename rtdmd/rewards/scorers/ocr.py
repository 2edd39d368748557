"""ocr: how much of the text that a prompt quotes can be read in the image, 1 - edit distance / length, in [0, 1].

The reader is rapidocr (PaddleOCR's detector and recogniser as ONNX files); the models come in its wheel, so nothing is
downloaded. It always runs on the CPU, on one thread, which makes it deterministic. Not differentiable.

Where this departs from the public code (Flow-GRPO's scorer, which RTDMD uses with PaddleOCR 2.9):
- the models are PP-OCRv6 small instead of PaddleOCR's English v3/v4, so scores agree in kind, not in digits;
- pixels reach the reader as BGR, which it is made for; the public code hands it RGB;
- an error stops the run; the public code counts it as a score of 0.
Kept from it: the detector sees images of up to 960 pixels at their own size, no text-direction classifier, lines below
confidence 0.5 are dropped, pieces are joined top to bottom and left to right without spaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.rewards.ocr_text import target_text, text_score
from rtdmd.rewards.protocol import Metadata, as_bytes, check_batch
from rtdmd.rewards.registration import Recorded, Registration, RewardParams
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rtdmd.rewards.protocol import Case

VERSION = 1  # raise it when the score of any image changes
PACKAGES = ("rapidocr", "onnxruntime", "opencv-python-headless")
MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}
SETTINGS: dict[str, Any] = {
    "Global.text_score": 0.5,
    "Global.use_cls": False,
    "Det.limit_type": "max",
    "Det.limit_side_len": 960,
}
_ONE_THREAD = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}


class OcrParams(RewardParams):
    """Quoted text against the text that is read. The models come in rapidocr's wheel."""

    name: Literal["ocr"] = param("scorer", source="Flow-GRPO's scorer")

    needs_text = True


def model_files() -> dict[str, Path]:
    """The detector's and the recogniser's ONNX file inside the installed package; UserError where one is missing."""
    package = find_spec("rapidocr")
    folder = Path((package.submodule_search_locations or [""])[0]) / "models" if package else Path()
    for name in MODELS.values():
        if not (folder / name).is_file():
            raise UserError(
                f"reward ocr: rapidocr's {name} is not installed; `pip install --force-reinstall -r requirements.lock`"
            )
    return {part: folder / name for part, name in MODELS.items()}


class Ocr(Scorer):
    """Images are read one by one on the CPU, so a score does not depend on its batch."""

    range = (0.0, 1.0)

    def __init__(self, params: OcrParams, device: torch.device) -> None:
        from rtdmd.rewards.weights import file_hashes

        files = model_files()
        packages = {package: version(package) for package in PACKAGES}  # that resize, crop and recognise
        about = {"files": file_hashes(files.values()), "packages": packages, "settings": SETTINGS, "version": VERSION}
        super().__init__(params, device, [], **about)
        self._reader = _reader(files)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """In [0, 1], on the images' device, without gradient."""
        import torch

        check_batch(images, prompts, metadata)
        targets = [target_text(prompt, record) for prompt, record in zip(prompts, metadata, strict=True)]
        found = self.read(images)
        scores = [text_score(target, text) for target, text in zip(targets, found, strict=True)]
        return torch.tensor(scores, dtype=torch.float32, device=images.device)

    def read(self, images: Tensor) -> list[str]:
        """What each of the images (B, 3, H, W) in [0, 1] says, pieces joined without spaces; "" where nothing is found.

        Raises NonFiniteError where a pixel is not finite.
        """
        texts = []
        for pixels in as_bytes(self.name, images):
            lines = self._reader(pixels[:, :, ::-1].copy()).txts
            texts.append("".join(lines or ()))
        return texts


def _reader(files: dict[str, Path]) -> Any:
    """A rapidocr reader on one thread, silent: that an image has no text is a result, not something to warn of."""
    import cv2
    from rapidocr import RapidOCR

    cv2.setNumThreads(1)
    paths = {f"{part}.model_path": str(path) for part, path in files.items()}
    return RapidOCR(params={**SETTINGS, **_ONE_THREAD, **paths, "Global.log_level": "critical"})


def case() -> Case:
    """Words on a sheet."""
    from rtdmd.rewards.golden_cases import text_case

    return text_case()


# PP-OCR's detector and recogniser.
REWARD = Registration(OcrParams, Ocr, Recorded(parameters=15_000_000, width=4, tokens=1000), case)
