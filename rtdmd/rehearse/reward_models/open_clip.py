"""A tiny CLIP written plainly on torch's own attention, whose parameters carry open_clip's names: the layout of the
published HPS v2.1 file. (`state_dict` was compared with open_clip 3.3's for the same sizes: equal names and shapes.)"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rtdmd.rehearse.reward_models.clip import EMBEDDED, LENGTH, PATCH, SIDE, WIDTH
from rtdmd.rehearse.reward_models.files import write_beside
from rtdmd.rehearse.tokenizers import clip_vocabulary

HPS = "HPS_v2.1_compressed.pt"


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.ln_2 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 2 * width), "c_proj": nn.Linear(2 * width, width)})

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        inner = self.ln_1(x)
        x = x + self.attn(inner, inner, inner, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, image: int, patch: int, out: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros((image // patch) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.ln_post = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.proj = nn.Parameter(torch.zeros(width, out))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(pixels), 1, -1), patches], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """The sizes of `clip.write_towers`. `image(pixels)`, `text(ids)` are unit embeddings (B, EMBEDDED)."""

    def __init__(self, vocabulary: int, length: int = LENGTH, seed: int = 0):
        super().__init__()
        self.visual = Visual(WIDTH, 2, 2, SIDE, PATCH, EMBEDDED)
        self.transformer = Transformer(WIDTH, 2, 2)
        self.token_embedding = nn.Embedding(vocabulary, WIDTH)
        self.positional_embedding = nn.Parameter(torch.zeros(length, WIDTH))
        self.ln_final = nn.LayerNorm(WIDTH)
        self.text_projection = nn.Parameter(torch.zeros(WIDTH, EMBEDDED))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, value in self.named_parameters():
                if name != "logit_scale":
                    value.copy_(0.3 * torch.randn(value.shape, generator=generator) + ("ln_" in name))

    def image(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.visual(pixels), dim=-1)

    def text(self, ids: Tensor) -> Tensor:
        """The end of a text is its largest id, and nothing looks ahead."""
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.ln_final(self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask))
        return F.normalize(x[torch.arange(len(ids)), ids.argmax(-1)] @ self.text_projection, dim=-1)


def write_hps(folder: Path, dtype: torch.dtype = torch.float16) -> OpenClip:
    """The file of xswu/HPSv2: wrapped, with other things beside the weights; returns the model as it is stored."""
    model = OpenClip(len(clip_vocabulary()[0])).to(dtype).eval()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": model.state_dict(), "epoch": 7, "name": "HPS"}, folder / HPS)
    write_beside(folder, "HPS_v2_compressed.pt")
    return model
