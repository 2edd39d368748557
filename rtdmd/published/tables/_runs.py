"""Runs that several tables share."""

from rtdmd.published.table import Checkpoint, Run

SD35M = Run("sd35m", "sd35m", "SD3.5-M as published: γ = 0.01, SubGRPO with M = 2 and the last step, η = 0.9")

REWARDS = "the paper names no training rewards for this table; ours are the preset's, the public code's"

PUBLISHED = "published checkpoint, evaluated by us"
SAME = (
    "that the published checkpoint is the model of the printed row is our reading; where it agrees with the figures and"
    " ours does not, the difference is one of training"
)


def checkpoint(preset: str, model: str, repository: str) -> Run:
    """The published checkpoint of a preset's backbone, judged as the preset judges."""
    about = f"{model}, the published checkpoint {repository}: nothing is trained"
    return Run(f"{preset}-checkpoint", preset, about, checkpoint=Checkpoint(repository))


SD35M_CHECKPOINT = checkpoint("sd35m", "SD3.5-M", "Harahan/SD35M-RTDMD")
FLUX2_4B_CHECKPOINT = checkpoint("flux2-klein-4b", "FLUX.2-klein 4B", "Harahan/FLUX2-4B-RTDMD")
FLUX2_9B_CHECKPOINT = checkpoint("flux2-klein-9b", "FLUX.2-klein 9B", "Harahan/FLUX2-9B-RTDMD")
FLUX1_CHECKPOINT = checkpoint("flux1-dev", "FLUX.1-dev", "Harahan/FLUX1-12B-RTDMD")
