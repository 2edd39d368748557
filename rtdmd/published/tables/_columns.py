"""The nine published figures: each scorer on its own prompt set."""

from rtdmd.published.table import Column

CLIPSCORE = Column("CLIPScore", "drawbench", "clipscore")
AESTHETIC = Column("Aesthetic", "drawbench", "aesthetic")
PICKSCORE = Column("PickScore", "drawbench", "pickscore", times=26.0)  # ours is the public code's reward, logit / 26
HPSV2 = Column("HPSv2", "drawbench", "hpsv2")
IMAGEREWARD = Column("ImageReward", "drawbench", "imagereward")
HPSV3 = Column("HPSv3", "hpsv3", "hpsv3")
GENEVAL = Column("GenEval", "geneval", "geneval")
GENEVAL2 = Column("GenEval2", "geneval2", "geneval2")
OCR = Column("OCR", "ocr", "ocr")

ABLATION = (CLIPSCORE, PICKSCORE, HPSV2)
"""What the SD3.5-M ablations print."""

NINE = (IMAGEREWARD, CLIPSCORE, AESTHETIC, PICKSCORE, HPSV2, HPSV3, GENEVAL, GENEVAL2, OCR)
"""All of them, in the order of table 2."""
