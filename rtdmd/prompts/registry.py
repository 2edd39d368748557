"""Sources of prompts by name: the files of rtdmd/prompts/sources."""

from __future__ import annotations

from rtdmd.common.discovery import discover
from rtdmd.prompts.registration import Registration

SOURCES = discover("rtdmd.prompts.sources", "SOURCE", Registration)
