"""What the configuration knows of backbone families: `FAMILY` of the files in rtdmd/backbones, read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from rtdmd.common.discovery import literals


@dataclass(frozen=True)
class FamilyInfo:
    """A backbone family: what users call it, its tokenizers' folders (CLIP's, and those that read
    ``model.max_sequence_length`` tokens), and passes of the teacher for one guided velocity."""

    title: str
    clip_tokenizers: tuple[str, ...]
    long_tokenizers: tuple[str, ...]
    guided_passes: int


FAMILIES = {name: FamilyInfo(**about) for name, about in literals("rtdmd.backbones", "FAMILY").items()}
TITLES = ", ".join(family.title for family in FAMILIES.values())
