"""geneval on a tiny random Mask2Former and CLIP, in the layout of the published folders."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer, Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

from rtdmd.common.errors import NonFiniteError, UserError
from rtdmd.common.files import sha256_file
from rtdmd.config import reward_params
from rtdmd.rehearse.reward_models.geneval import write_detector
from rtdmd.rewards.geneval_colours import ColourNames, cut_out
from rtdmd.rewards.geneval_detector import MEAN, STD, Detector, instances, load_model, prepare
from rtdmd.rewards.geneval_rules import CLASSES, COLOURS, THRESHOLD, Found, parse
from rtdmd.rewards.registry import load_reward
from rtdmd.rewards.scorers.geneval import GenEval, GenEvalParams
from tests.rewards.reward_checks import as_pil

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_detector(tmp_path_factory.mktemp("geneval") / "detector")


@pytest.fixture(scope="module")
def detector(folder: Path) -> Detector:
    return Detector(folder, CPU, short=64, long=128)


@pytest.fixture(scope="module")
def colours(tiny_clip: Path) -> ColourNames:
    return ColourNames(tiny_clip, CPU)


@pytest.fixture(scope="module")
def reward(detector: Detector, colours: ColourNames) -> GenEval:
    return scorer(detector, colours, soft_weight=0.25)


def scorer(detector: Detector, colours: ColourNames, **keys: Any) -> GenEval:
    return GenEval(GenEvalParams(name="geneval", model="m", colour_model="c", **keys), detector, colours, {})


def pictures(height: int = 48, width: int = 60) -> torch.Tensor:
    """Bytes over 255: what a saved image keeps."""
    pixels = torch.randint(0, 256, (3, 3, height, width), generator=torch.Generator().manual_seed(3))
    return F.avg_pool2d(pixels.float(), 9, 1, 4).round() / 255


def record_of(found: Found, colour: str | None = None) -> dict[str, Any]:
    want = {"class": found.name, "count": 1} | ({"color": colour} if colour else {})
    return {"tag": "colors" if colour else "single_object", "include": [want]}


def test_the_published_keys_load_to_the_last_one(folder: Path) -> None:
    saved = load_file(folder / "model.safetensors")
    assert "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight" in saved
    model = load_model(folder)
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    here = model.state_dict()
    assert torch.equal(here["class_predictor.weight"], saved["class_predictor.weight"])
    query = "model.pixel_level_module.encoder.swin.encoder.layers.3.blocks.0.attention.q_proj.weight"
    old = "model.pixel_level_module.encoder.encoder.layers.3.blocks.0.attention.self.query.weight"
    assert torch.equal(here[query], saved[old])


def plain_evaluation(folder: Path, image: torch.Tensor) -> list[tuple[str, float, np.ndarray]]:
    """(class, confidence, mask) of every pair of query and class, written out, without our code."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    pixels = F.interpolate(image[None], size=(64, 80), mode="bilinear", align_corners=False)
    pixels = F.pad(pixels, (0, 16), value=128 / 255)  # 80 is padded to 96
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        out = model(pixel_values=pixels)
    masks = F.interpolate(out.masks_queries_logits, size=(64, 96), mode="bilinear", align_corners=False)
    masks = F.interpolate(masks[..., :80], size=(48, 60), mode="bilinear", align_corners=False)[0].numpy()
    pairs = []
    for query, logits in enumerate(out.class_queries_logits[0].double().numpy()):
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        on = masks[query] > 0
        if on.any():
            mean = (1 / (1 + np.exp(-masks[query][on].astype(float)))).mean()
            pairs += [(share[label], share[label] * mean, label, on) for label in range(80)]
    likely = sorted(pairs, key=lambda pair: -pair[0])[:12]
    return [(CLASSES[label], score, on) for share, score, label, on in likely if share > THRESHOLD]


def test_detections_equal_a_plain_evaluation(detector: Detector, folder: Path) -> None:
    seen = 0
    for image in pictures():
        expected, found = plain_evaluation(folder, image), detector(image)
        assert [thing.name for thing in found.found] == [name for name, _, _ in expected]
        for thing, (_, confidence, mask) in zip(found.found, expected, strict=True):
            assert thing.confidence == pytest.approx(confidence, abs=1e-4)
            assert np.array_equal(found.masks[thing.index].numpy(), mask)
            rows, columns = np.nonzero(mask)
            assert thing.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            seen += 1
    assert seen >= 6


def test_instances_are_those_of_transformers_at_its_own_size(detector: Detector) -> None:
    """transformers reads masks out at 384x384; asked for that size, both must agree."""
    generator = torch.Generator().manual_seed(0)
    classes = 8 * torch.randn(1, 12, 81, generator=generator)
    masks = 4 * torch.randn(1, 12, 6, 6, generator=generator)
    outputs = type("Outputs", (), {"class_queries_logits": classes, "masks_queries_logits": masks})()
    processor = Mask2FormerImageProcessorPil()
    (theirs,) = processor.post_process_instance_segmentation(
        outputs, THRESHOLD, target_sizes=[(384, 384)], return_binary_maps=True
    )
    size = torch.Size((384, 384))
    ours = instances(classes[0], masks[0], size, (384, 384), size)
    kept = [thing for thing in ours.found if thing.confidence >= THRESHOLD]
    order = sorted(range(len(kept)), key=lambda i: -kept[i].confidence)
    infos = theirs["segments_info"]
    their_order = sorted(range(len(infos)), key=lambda i: -infos[i]["score"])
    assert len(kept) == len(infos) >= 5
    for i, j in zip(order, their_order, strict=True):
        assert kept[i].name == CLASSES[infos[j]["label_id"]]
        assert kept[i].confidence == pytest.approx(infos[j]["score"], abs=2e-6)
        assert torch.equal(ours.masks[kept[i].index], theirs["segmentation"][j].bool())


def test_nothing_likely_is_nothing_found() -> None:
    size = torch.Size((20, 30))
    found = instances(torch.zeros(5, 81), torch.ones(5, 4, 4), size, (20, 30), size)
    assert found.found == () and found.masks.shape == (0, 20, 30)


@pytest.mark.parametrize(
    ("size", "inner", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 1024), (800, 800), (800, 800)),
        ((512, 768), (800, 1200), (800, 1216)),
        ((512, 1024), (667, 1333), (672, 1344)),
    ],
)
def test_sides_are_those_of_openmmlab(size: tuple[int, int], inner: tuple[int, int], padded: tuple[int, int]) -> None:
    pixels, got = prepare(torch.zeros(3, *size))
    assert got == inner and pixels.shape == (3, *padded)
    assert pixels[0, 0, 0] == pytest.approx(-MEAN[0] / STD[0])
    for outside in (pixels[:, inner[0] :], pixels[:, :, inner[1] :]):
        grey = outside * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        assert (grey * 255 - 128).abs().sum() < 1e-4 * max(1, grey.numel())


@pytest.mark.parametrize("size", [(48, 60), (150, 90)])
def test_resizing_is_opencvs(size: tuple[int, int]) -> None:
    """To a byte: cv2 computes with whole numbers. It floors two terms to quarters, then rounds: up to 2/4 + 1/2."""
    image = pictures(*size)[0]
    pixels, (height, width) = prepare(image, 64, 128)
    ours = pixels[:, :height, :width] * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    array = (image * 255).round().byte().permute(1, 2, 0).numpy()
    theirs = cv2.resize(array, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.abs(ours.permute(1, 2, 0).numpy() * 255 - theirs).max() < 1


def test_prototypes_equal_a_plain_evaluation(colours: ColourNames, tiny_clip: Path) -> None:
    model, tokenizer = CLIPModel.from_pretrained(tiny_clip).eval(), CLIPTokenizer.from_pretrained(tiny_clip)
    for row, colour in enumerate(COLOURS):
        sentences = [
            f"a photo of a {colour} car",
            f"a photo of a {colour}-colored car",
            f"a photo of a {colour} object",
        ]
        units = []
        for sentence in sentences:
            tokens = tokenizer(sentence, truncation=True, max_length=12, return_tensors="pt")
            with torch.no_grad():
                embedding = model.get_text_features(**tokens).pooler_output[0]
            units.append(embedding / embedding.norm())
        mean = torch.stack(units).mean(0)
        assert (colours.prototypes("car")[row] - mean / mean.norm()).abs().max() < 1e-6


def masked_crop(image: torch.Tensor, mask: torch.Tensor, box: tuple[float, ...]) -> Image.Image:
    """The public way: PIL's composite over #999, then its crop."""
    (photo,) = as_pil(image[None])
    blank = Image.new("RGB", photo.size, "#999")
    return Image.composite(photo, blank, Image.fromarray(mask.numpy())).crop(tuple(int(side) for side in box))


def test_cut_outs_are_cropped_as_torchvision_does(tiny_clip: Path) -> None:
    """A cut-out of 36 x 41 pixels leaves a rest of five: the crop begins at the even one of 2 and 3."""
    rows = torch.arange(41.0).view(1, 1, 41, 1).expand(1, 3, 41, 36) / 64
    transform = ColourNames(tiny_clip, torch.device("cpu")).transform
    assert transform.half == "even"
    plain = replace(transform, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert plain(rows)[0, 0, 0, 0] == 2 / 64
    assert plain(rows[:, :, :39])[0, 0, 0, 0] == 2 / 64  # 1.5 -> 2, where transformers begins at 1
    assert replace(plain, half="down")(rows[:, :, :39])[0, 0, 0, 0] == 1 / 64


def test_cut_outs_are_pils_to_the_byte() -> None:
    image = pictures()[0]
    mask = torch.rand(48, 60, generator=torch.Generator().manual_seed(1)) < 0.5
    thing = Found("car", 0.9, (7, 5, 43, 30))
    ours = (cut_out(image, mask, thing) * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(ours, np.asarray(masked_crop(image, mask, thing.box)))


def test_colours_equal_a_plain_evaluation(colours: ColourNames, tiny_clip: Path) -> None:
    model = CLIPModel.from_pretrained(tiny_clip).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (colours.transform.mean, colours.transform.std))
    answers = set()
    for number in range(8):
        image = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(number)).expand(3, 48, 60)
        mask = torch.ones(48, 60, dtype=torch.bool)
        mask[:6, :20] = False
        thing = Found("car", 0.9, (0, 0, 40, 40))
        crop = masked_crop(image, mask, thing.box).resize((36, 36), Image.Resampling.BICUBIC)
        pixels = (torch.from_numpy(np.asarray(crop).copy()).permute(2, 0, 1) / 255 - mean) / std
        with torch.no_grad():
            cosines = colours.prototypes("car") @ model.get_image_features(pixel_values=pixels[None]).pooler_output[0]
        byte_image = (image * 255).round() / 255
        assert colours(byte_image, mask[None], "car", [thing]) == [COLOURS[int(cosines.argmax())]]
        answers.add(int(cosines.argmax()))
    assert len(answers) > 1


def test_scores_follow_detections_and_rules(reward: GenEval, detector: Detector, colours: ColourNames) -> None:
    images = pictures()
    seen = [detector(image) for image in images]
    first = [max(one.found, key=lambda thing: thing.confidence) for one in seen]
    assert all(thing.confidence > THRESHOLD for thing in first)
    named = [
        colours(image, one.masks, thing.name, [thing])[0] for image, one, thing in zip(images, seen, first, strict=True)
    ]
    wrong = COLOURS[(COLOURS.index(named[1]) + 1) % 10]
    records = [record_of(first[0]), record_of(first[1], wrong), record_of(first[2], named[2])]
    verdicts = reward.verdicts(images, ["p"] * 3, records)
    assert [verdict.correct for verdict in verdicts] == [True, False, True]
    for verdict, one, thing in zip(verdicts, seen, first, strict=True):
        number = sum(other.name == thing.name and other.confidence > THRESHOLD for other in one.found)
        assert verdict.parts[0] == max(0, 2 - number)
    expected = [0.25 * verdict.soft + 0.75 * verdict.correct for verdict in verdicts]
    scores = reward.score(images, ["p"] * 3, records)
    assert scores.dtype == torch.float32 and scores.tolist() == pytest.approx(expected, abs=1e-7)
    public = scorer(detector, colours, soft_weight=0.0, verdict="exact")
    assert public.score(images, ["p"] * 3, records).tolist() == [verdict.soft == 1 for verdict in verdicts]
    trained = scorer(detector, colours, soft_weight=1.0, soft_parts="published")
    (lowest, _), counts = trained.range, [one.parts[0] for one in trained.verdicts(images, ["p"] * 3, records)]
    assert lowest == -14 and min(trained.score(images, ["p"] * 3, records)) >= lowest
    assert counts == [2 - sum(t.name == f.name for t in one.found) for one, f in zip(seen, first, strict=True)]
    assert trained.identity() == public.identity() | {
        "soft_weight": 1.0,
        "soft_parts": "published",
        "verdict": "benchmark",
    }


def test_a_batch_is_its_images_one_by_one(reward: GenEval, detector: Detector) -> None:
    images = pictures() + torch.rand(3, 3, 48, 60) * 1e-3  # off the bytes: rounded away
    records = [record_of(detector(image).found[0], "red") for image in pictures()]
    together = reward.score(images, ["p"] * 3, records)
    alone = [reward.score(images[i : i + 1], ["p"], records[i : i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together, torch.cat([alone[1], alone[2], alone[0]]))
    assert torch.equal(together, reward.score(pictures(), ["p"] * 3, records))


def test_params_lead_to_it_at_the_published_sides(
    folder: Path, tiny_clip: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    params = reward_params(name="geneval", model=str(folder), colour_model=str(tiny_clip), soft_weight=0.5)
    found = load_reward(params)
    assert isinstance(found, GenEval) and not params.differentiable and found.needs_metadata
    assert (found.detector.short, found.detector.long) == (800, 1333)
    assert capfd.readouterr() == ("", "")
    identity = found.identity()
    assert json.loads(json.dumps(identity)) == identity
    assert identity["files"]["detector/model.safetensors"] == sha256_file(folder / "model.safetensors")
    assert identity["files"]["colours/model.safetensors"] == sha256_file(tiny_clip / "model.safetensors")
    assert (identity["soft_weight"], identity["rules"]["margin"]) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "maskformer"}, "holds a 'maskformer' model, not a 'mask2former' one"),
        ({"id2label": {"0": "person"}}, "has 1 classes in id2label, from 'person'; COCO's 80"),
    ],
)
def test_another_model_is_an_error(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path)


def test_a_missing_or_unknown_key_is_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is not a Mask2Former folder; fetch one with `hf download facebook"):
        load_model(tmp_path / "nowhere")
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    bias = tensors.pop("class_predictor.bias")
    save_file({**tensors, "class_predictor.offset": bias}, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing: class_predictor\.bias; unexpected: class_predictor\.offset;"):
        load_model(broken)
    save_file({**tensors, "class_predictor.bias": bias[:-1]}, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"of another shape: class_predictor\.bias;"):
        load_model(broken)


def test_faults_are_errors_and_never_scores(reward: GenEval) -> None:
    record = {"tag": "single_object", "include": [{"class": "cat", "count": 1}]}
    assert parse(record, "p").tag == "single_object"
    with pytest.raises(UserError, match="needs metadata, but the prompt 'b' has none"):
        reward.score(pictures()[:2], ["a", "b"], [record, None])
    with pytest.raises(UserError, match="class: 'circle'; allowed: person"):
        reward.score(pictures()[:1], ["a"], [{**record, "include": [{"class": "circle", "count": 1}]}])
    broken = pictures()[:2].clone()
    broken[1, 0, 0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="reward geneval got a pixel that is not finite, at image 1"):
        reward.score(broken, ["a", "b"], [record, record])
