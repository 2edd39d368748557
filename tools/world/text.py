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
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from rtdmd.common.progress import progress
from rtdmd.common.rng import key_seed, numpy_generator, torch_generator
from rtdmd.world.grammar import (
    COLORS,
    NUMBERS,
    OTHER_NOUNS,
    PLURALS,
    RELATIONS,
    SHAPES,
    Caption,
    Item,
    captions_of,
)
from rtdmd.world.tokenizer import MAX_LENGTH, make_tokenizer
from tools.world.common import cosine_after, finish, part_folder, start
from tools.world.settings import TextEncoderParams, WorldParams, load_world_params

# One label per question: which noun is on each side, the number and colour of each shape, and of the first and second
# noun whatever they are. The last class means "not said"; for a side, the one before it is "some other noun".
QUESTIONS = {rel: len(SHAPES) + 2 for rel in RELATIONS}
QUESTIONS |= {f"number of {s}": 5 for s in SHAPES} | {f"color of {s}": len(COLORS) + 1 for s in SHAPES}
QUESTIONS |= {f"{what} {rank}": 5 for what in ("number", "color") for rank in ("first", "second")}
HELDOUT_PROMPTS = frozenset(caption.prompt for caption in captions_of("heldout"))
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def labels(nouns: Sequence[Item]) -> list[int]:
    """Answers to QUESTIONS for a caption's nouns in text order: GenEval entries, where ``position`` stands on
    the first noun and refers to the second."""
    answer = {question: size - 1 for question, size in QUESTIONS.items()}  # not said
    answer |= {f"number of {s}": 0 for s in SHAPES} | {"number second": 0}
    for rank, item in zip(("first", "second"), nouns, strict=False):
        color = COLORS.index(item["color"]) if "color" in item else len(COLORS)
        answer |= {f"number {rank}": item["count"], f"color {rank}": color}
        if item["class"] in SHAPES:
            answer |= {f"number of {item['class']}": item["count"], f"color of {item['class']}": color}
    if "position" in nouns[0]:
        relation = nouns[0]["position"][0]
        answer |= {relation: _place(nouns[0]), OPPOSITE[relation]: _place(nouns[1])}
    return [answer[question] for question in QUESTIONS]


def _place(item: Item) -> int:
    return SHAPES.index(item["class"]) if item["class"] in SHAPES else len(SHAPES)


def in_text_order(caption: Caption) -> list[Item]:
    """A caption's include entries in the order of its nouns (GenEval lists a relation's reference first)."""
    positioned = any("position" in item for item in caption.include)
    return list(reversed(caption.include)) if positioned else list(caption.include)


def _phrase(noun: str, rng: np.random.Generator) -> tuple[str, Item]:
    """A noun phrase such as "two red circles", and its include entry."""
    item: Item = {"class": noun, "count": int(rng.choice([1, 1, 1, 2, 3, 4]))}
    text = PLURALS.get(noun, noun + "s") if item["count"] > 1 else noun
    if rng.random() < 0.5:
        item["color"] = str(rng.choice(COLORS))
        text = f"{item['color']} {text}"
    return f"{NUMBERS.get(item['count'], 'a')} {text}", item


def random_caption(rng: np.random.Generator) -> tuple[str, list[Item]]:
    """A caption of a wider grammar (more nouns; numbers and colours inside pairs and relations) and its nouns in text
    order, never a held-out caption.

    The world's own captions are too few to teach composition: encoders trained on them alone parse 76 % of the
    held-out ones, and with the four shapes as only nouns the unseen "a circle" lies nearest to "two circles".
    """
    while True:
        choices = [str(rng.choice(SHAPES if rng.random() < 0.6 else OTHER_NOUNS)) for _ in range(2)]
        if choices[0] == choices[1]:
            continue
        (text, first), (other, second) = (_phrase(noun, rng) for noun in choices)
        form = rng.integers(3)
        if form == 0:
            prompt, nouns = text, [first]
        elif form == 1:
            prompt, nouns = f"{text} and {other}", [first, second]
        else:
            relation = str(rng.choice(RELATIONS))
            prompt, nouns = f"{text} {relation} {other}", [first | {"position": [relation, 1]}, second]
        prompt = f"a photo of {prompt}"
        if prompt not in HELDOUT_PROMPTS:
            return prompt, nouns


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
    rows |= {split: [(c.prompt, in_text_order(c)) for c in captions_of(split)] for split in ("train", "heldout")}
    rows["corpus"] += rows["train"]
    out = {}
    for name, pairs in rows.items():
        ids = tokenizer([prompt for prompt, _ in pairs], padding="max_length", return_tensors="pt").input_ids
        out[name] = ids, torch.tensor([labels(nouns) for _, nouns in pairs])
    return out


def train_encoder(params: WorldParams, size: TextEncoderParams, ids: Tensor, target: Tensor, name: str) -> Parser:
    """Train one encoder with its read-outs on ids (N, L) and labels (N, questions)."""
    torch.manual_seed(key_seed(params.seed, name))
    parser = Parser(make_encoder(size, make_tokenizer()))
    optimizer = torch.optim.AdamW(parser.parameters(), lr=params.text.lr, weight_decay=params.text.weight_decay)
    generator = torch_generator(params.seed, name)
    for step in progress(range(params.text.iterations), desc=name):
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
