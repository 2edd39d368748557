"""`rtdmd world text`: the teacher's two CLIP text encoders, trained to parse captions and then frozen.

Contrastive training erases relations ("left of" and "right of" end at the same vector), so the encoders learn from text
alone: linear read-outs of the penultimate hidden state at the end-of-text token (what SD3 conditions on) and of the
projected embedding (what SD3 pools) must tell which shape is left, right, top and bottom, how many objects there are,
which shapes there are and their colours. Held-out captions are never seen; their read-out accuracy is reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from rtdmd.config.world import TextEncoderParams, WorldParams, load_world_params
from rtdmd.rng import key_seed, numpy_generator, torch_generator
from rtdmd.world.common import cosine_after, finish, part_folder, start
from rtdmd.world.grammar import COLORS, NUMBERS, PLURALS, RELATIONS, SHAPES, Item, captions_of
from rtdmd.world.tokenizer import MAX_LENGTH, make_tokenizer

# One label per question: where each side's shape, and each shape's number and colour. The last class means "not said".
QUESTIONS = {rel: len(SHAPES) + 1 for rel in RELATIONS}
QUESTIONS |= {f"number of {s}": 5 for s in SHAPES} | {f"color of {s}": len(COLORS) + 1 for s in SHAPES}
HELDOUT_PROMPTS = frozenset(caption.prompt for caption in captions_of("heldout"))
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def labels(include: Sequence[Item]) -> list[int]:
    """Answers to QUESTIONS for a caption's GenEval ``include`` entries."""
    answer = {rel: len(SHAPES) for rel in RELATIONS} | {f"number of {s}": 0 for s in SHAPES}
    answer |= {f"color of {s}": len(COLORS) for s in SHAPES}
    for item in include:
        answer[f"number of {item['class']}"] = item["count"]
        if "color" in item:
            answer[f"color of {item['class']}"] = COLORS.index(item["color"])
        if "position" in item:
            relation, reference = item["position"]
            answer[relation] = SHAPES.index(item["class"])
            answer[OPPOSITE[relation]] = SHAPES.index(include[reference]["class"])
    return [answer[question] for question in QUESTIONS]


def _phrase(shape: str, rng: np.random.Generator) -> tuple[str, Item]:
    """A noun phrase such as "two red circles", and its include entry."""
    item: Item = {"class": shape, "count": int(rng.choice([1, 1, 1, 2, 3, 4]))}
    noun = PLURALS[shape] if item["count"] > 1 else shape
    if rng.random() < 0.5:
        item["color"] = str(rng.choice(COLORS))
        noun = f"{item['color']} {noun}"
    return f"{NUMBERS.get(item['count'], 'a')} {noun}", item


def random_caption(rng: np.random.Generator) -> tuple[str, list[Item]]:
    """A caption of a wider grammar (numbers and colours inside pairs and relations), never a held-out one.

    The world's own captions are too few to teach composition: encoders trained on them alone parse 76 % of the
    held-out ones.
    """
    while True:
        one, two = (str(s) for s in rng.permutation(SHAPES)[:2])
        (text, item), (other, reference) = _phrase(one, rng), _phrase(two, rng)
        form = rng.integers(3)
        if form == 0:
            prompt, include = text, [item]
        elif form == 1:
            prompt, include = f"{text} and {other}", [item, reference]
        else:
            relation = str(rng.choice(RELATIONS))
            prompt, include = f"{text} {relation} {other}", [reference, item | {"position": [relation, 0]}]
        prompt = f"a photo of {prompt}"
        if prompt not in HELDOUT_PROMPTS:
            return prompt, include


def make_encoder(params: TextEncoderParams, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """A CLIPTextModelWithProjection of the given size for the world's tokenizer."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=params.width,
        intermediate_size=4 * params.width,
        projection_dim=params.width,
        num_hidden_layers=params.layers,
        num_attention_heads=params.heads,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


class Parser(nn.Module):
    """A text encoder with linear read-outs on the two vectors that SD3 uses."""

    def __init__(self, encoder: CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.encoder = encoder
        width, answers = encoder.config.hidden_size, sum(QUESTIONS.values())
        self.from_hidden, self.from_pooled = nn.Linear(width, answers), nn.Linear(width, answers)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Answer logits (B, answers) from the penultimate hidden state and from the pooled embedding."""
        out = self.encoder(ids, output_hidden_states=True)
        end = (ids == self.encoder.config.eos_token_id).int().argmax(1)
        hidden = out.hidden_states[-2][torch.arange(len(ids)), end]
        return self.from_hidden(hidden), self.from_pooled(out.text_embeds)


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Sum over questions of the cross-entropy; logits (B, answers), target (B, questions)."""
    parts = logits.split(list(QUESTIONS.values()), dim=1)
    return torch.stack([F.cross_entropy(part, target[:, i]) for i, part in enumerate(parts)]).sum()


def accuracy(logits: Tensor, target: Tensor) -> float:
    """Share of captions with every question answered right."""
    parts = logits.split(list(QUESTIONS.values()), dim=1)
    right = torch.stack([part.argmax(1) == target[:, i] for i, part in enumerate(parts)])
    return right.all(0).float().mean().item()


def corpus(params: WorldParams, tokenizer: CLIPTokenizer) -> dict[str, tuple[Tensor, Tensor]]:
    """Token ids (N, L) and labels (N, questions) of the training corpus and of both splits of the world's captions."""
    rng = numpy_generator(params.seed, "text-corpus")
    rows = {"corpus": [random_caption(rng) for _ in range(params.text.captions)]}
    rows |= {split: [(c.prompt, list(c.include)) for c in captions_of(split)] for split in ("train", "heldout")}
    rows["corpus"] += rows["train"]
    out = {}
    for name, pairs in rows.items():
        ids = tokenizer([prompt for prompt, _ in pairs], padding="max_length", return_tensors="pt").input_ids
        out[name] = ids, torch.tensor([labels(include) for _, include in pairs])
    return out


def train_encoder(params: WorldParams, size: TextEncoderParams, ids: Tensor, target: Tensor, name: str) -> Parser:
    """Train one encoder with its read-outs on ids (N, L) and labels (N, questions)."""
    torch.manual_seed(key_seed(params.seed, name))
    parser = Parser(make_encoder(size, make_tokenizer()))
    optimizer = torch.optim.AdamW(parser.parameters(), lr=params.text.lr, weight_decay=params.text.weight_decay)
    generator = torch_generator(params.seed, name)
    for step in tqdm(range(params.text.iterations), desc=name, mininterval=2):
        optimizer.param_groups[0]["lr"] = params.text.lr * cosine_after(step, params.text.iterations, 0.3)
        rows = torch.randint(len(ids), (params.text.batch_size,), generator=generator)
        hidden, pooled = parser(ids[rows])
        loss = answer_loss(hidden, target[rows]) + answer_loss(pooled, target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return parser


def run(root: Path = Path(".")) -> None:
    """Train both encoders; writes text_encoder/, text_encoder_2/ and tokenizer/ under the world's work folder."""
    params = load_world_params(root)
    start(params)
    tokenizer = make_tokenizer()
    data = corpus(params, tokenizer)
    folder = part_folder(root, "text")
    metrics = {}
    for name, size in (("text_encoder", params.text.encoder), ("text_encoder_2", params.text.encoder_2)):
        parser = train_encoder(params, size, *data["corpus"], name)
        with torch.no_grad():
            for split in ("train", "heldout"):
                ids, target = data[split]
                for read_out, logits in zip(("hidden", "pooled"), parser(ids), strict=True):
                    metrics[f"{name}.{split}.{read_out}"] = accuracy(logits, target)
        parser.encoder.eval().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    finish(folder, metrics)
