"""Peak memory of publishing by phase: the stage's own process, and its gate's.

Each phase holds one model and gives it back before the next one comes (`rtdmd.publish.export`,
`rtdmd.publish.gate_check`), so nothing stays from one to another. Weights are merged and written a tensor at a time.
"""

from __future__ import annotations

from rtdmd.plan.cost_counter import size_of
from rtdmd.plan.costs import Cost, Costs
from rtdmd.plan.memory import Memory

EXAMPLES = 4  # images of the model card's picture
COMPARED = 2  # latents that student and export are compared on
EXACT = 4  # bytes of a number in float32, in which they are compared
PUBLISH = "publish"
GATE = "its gate"


def publishing_memory(costs: Costs, encode: Cost) -> dict[str, Memory]:
    """Of the stage's process and of its gate's, on the device of the run; the card's programs run on the CPU as they
    are printed, so on a GPU their memory is the host's."""
    models = costs.models
    base = float(models.base_size()[1])
    text = float(size_of(models.text.values())[1])
    decoder = float(size_of([models.vae])[1])
    width = models.backbone.dtype.itemsize
    full = models.bank.full
    adapters = 0.0 if full else float(models.adapter_bytes("acdmd") + models.adapter_bytes("rtdmd"))
    merged = float(models.adapted_bytes()) if models.merged else 0.0
    drawing = max(costs.reference.peak, costs.pictures.peak)  # of an image
    exact = {
        "transformer": EXACT / width * base,
        "adapters": adapters,
        "merged layers": EXACT / width * merged,
        "activations": COMPARED * EXACT / width * costs.reference.peak,
    }
    example = {
        "transformer": exact["transformer"] if full else base,  # all weights of a student are float32
        "adapters": adapters,
        "merged layers": merged,
        "decoder": decoder,
        "activations": EXAMPLES * drawing,
    }
    encoding = {"text encoders": text, "activations": 2 * encode.peak}  # of the prompt and of the empty one
    card = {
        "text encoders": text,
        "transformer": base,
        "adapters": adapters * width / EXACT,
        "decoder": decoder,
        "activations": drawing,
    }
    # The gate's pipeline has its decoder; what stage one's student is merged into is no part of it.
    compared = exact | {"merged layers": 0.0, "decoder": EXACT / width * decoder}
    own = Memory({}, {"encoding": encoding, "example": example, "comparison": exact})
    if models.params.run.device == "cpu":
        return {PUBLISH: own, GATE: Memory({}, {"card": card, "comparison": compared})}
    return {PUBLISH: own, GATE: Memory({}, {"comparison": compared}, sum(card.values()))}
