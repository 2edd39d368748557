"""geneval2: GenEval 2's Soft-TIFA (arXiv 2512.16853), by a Qwen3-VL that is asked about the parts of a prompt.

Each part is a question with its right answer (geneval2_questions). The answer's probability is that of the model's
next token being one of its spellings; the score is the geometric mean over the questions, in [0, 1]. Prompts need
GenEval 2's record. Not differentiable: the image is read as 8-bit pixels.

The public code adds up the first tokens of all spellings (``answers: first_token``), which for " 4" is a bare blank,
whatever the number. With ``one_token`` a spelling counts where it is one token.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from rtdmd.common.errors import UserError
from rtdmd.common.section import param
from rtdmd.rewards.geneval2_questions import ASKED, Question, questions_of
from rtdmd.rewards.protocol import Metadata, check_batch, checked, require_metadata
from rtdmd.rewards.registration import Recorded, Registration, RewardParams, Source, commit_of
from rtdmd.rewards.scorer import Scorer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rtdmd.rewards.protocol import Case

VERSION = 1  # raise it when the score of any image changes
Answers = Literal["one_token", "first_token"]
Precision = Literal["folder", "float16"]


class GenEval2Params(RewardParams):
    """Soft-TIFA: questions about the parts of a prompt."""

    name: Literal["geneval2"] = param("scorer", source="arXiv 2512.16853")
    model: str = param("a Qwen3-VL folder or Hub id", source="GenEval 2: Qwen/Qwen3-VL-8B-Instruct")
    revision: str | None = commit_of("model")
    answers: Answers = param(
        "which probability an answer's spelling has: its token's, where it is one token; or its first token's",
        source="public code: first_token; one_token ours",
        default="one_token",
    )
    precision: Precision = param(
        "numbers that it computes with: those of its folder (bfloat16), or float16",
        source="public code: float16; folder ours",
        default="folder",
    )

    needs_metadata = True
    sources: ClassVar = {"model": Source("revision")}


class GenEval2(Scorer):
    """The scorer of ``params.model``, a Qwen3-VL folder. An image's questions are one batch, so a score does not depend
    on others."""

    range = (0.0, 1.0)

    def __init__(self, params: GenEval2Params, device: torch.device):
        """UserError where a file is missing or another model's."""
        from rtdmd.common.pretrained import pretrained_exactly
        from rtdmd.common.torch_setup import quiet_imports
        from rtdmd.rewards.qwenvl import VisionChat, require_kind
        from rtdmd.rewards.weights import model_hashes

        with quiet_imports():
            from transformers import Qwen3VLForConditionalGeneration

        folder = Path(params.model)
        self.key = "rewards: geneval2: model"
        require_kind(folder, self.key, "qwen3_vl")
        self.chat = VisionChat(folder, self.key)
        self.model = pretrained_exactly(Qwen3VLForConditionalGeneration, folder, self.key, "auto")
        if params.precision == "float16":
            self.model = self.model.half()
        self.model.to(device)
        self.settings = {"answers": params.answers, "precision": params.precision}
        files = model_hashes(folder, self.key)
        super().__init__(params, device, [self.model], files=files, template=ASKED, version=VERSION, **self.settings)

    def score(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> Tensor:
        """In [0, 1], on the images' device. UserError where a record holds no questions."""
        import torch

        answers = self.answers(images, prompts, metadata)
        means = [logs.mean().exp() for logs in answers]
        return checked(self.name, torch.stack(means).to(images.device))

    def answers(self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Metadata]) -> list[Tensor]:
        """Of each image, the log probabilities (Q,) float32 of its Q questions' right answers; errors as `score`."""
        import torch

        check_batch(images, prompts, metadata)
        records = require_metadata(self.name, prompts, metadata)
        asked = [questions_of(prompt, record) for prompt, record in zip(prompts, records, strict=True)]
        with torch.no_grad():
            return [self._ask(image, questions) for image, questions in zip(images, asked, strict=True)]

    def _ask(self, image: Tensor, questions: Sequence[Question]) -> Tensor:
        """(Q,) log probabilities of the right answers about one image (3, H, W)."""
        import torch

        from rtdmd.rewards.qwenvl import last_positions, to_device

        tokens = [self._tokens(question) for question in questions]
        inputs = self.chat(image.expand(len(questions), -1, -1, -1), [question.text for question in questions])
        inputs = to_device(inputs, self.device)
        hidden = self.model.model(**inputs, use_cache=False).last_hidden_state
        ends = last_positions(inputs["attention_mask"])
        logits = self.model.lm_head(hidden[torch.arange(len(ends), device=self.device), ends])
        logs = logits.float().log_softmax(-1)  # (Q, words)
        return torch.stack([row[places].logsumexp(0) for row, places in zip(logs, tokens, strict=True)])

    def _tokens(self, question: Question) -> list[int]:
        """The spellings of the right answer that are one token, each once; or the first token of each spelling."""
        encoded = [self.chat.tokenizer.encode(spelling) for spelling in question.answers]
        if self.settings["answers"] == "first_token":
            return [tokens[0] for tokens in encoded]
        if found := sorted({tokens[0] for tokens in encoded if len(tokens) == 1}):
            return found
        raise UserError(
            f"{self.key}: its tokenizer cuts {question.answers[0]!r} into several tokens; is it Qwen3-VL's own?"
        )


def case() -> Case:
    """The embedded world's scenes with questions about them."""
    from rtdmd.rewards.golden_cases import question_case

    return question_case()


REWARD = Registration(GenEval2Params, GenEval2, Recorded(8_767_123_696, width=2, tokens=1400), case)  # Qwen3-VL-8B
