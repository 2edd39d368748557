"""What the models and figures are called where people read them."""

LABELS = {
    "teacher": "Teacher",
    "teacher_few_step": "Teacher, few steps",
    "train_acdmd": "Stage one (AC-DMD)",
    "train_rtdmd": "Stage two (RTDMD)",
    "reference": "Real images",
}

SCORES = {
    "strict": "Strict",
    "lenient": "Lenient",
    "soft": "Soft",
    "clipscore": "CLIP score",
    "world_verifier": "Verifier reward",
}


def score_label(name: str) -> str:
    """A score's name in a table's head."""
    return SCORES.get(name, name)
