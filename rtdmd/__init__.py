"""rtdmd: few-step text-to-image generators, distilled (AC-DMD) and then reinforced (RTDMD)."""

__version__ = "0.1.0"
