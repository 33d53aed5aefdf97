"""The prompts of the five benchmarks: downloaded on request or read from a path, and parsed into typed prompts.

None of these files is part of the project: each set is downloaded from its official repository (pinned by sha256, kept
in a cache; what, how big and under which license is printed first).
"""

from irg.promptsets.load import NAMES, canonical_name, load
from irg.promptsets.prompt_set import BenchPrompt, PromptSet
from irg.promptsets.sources import SOURCES, PromptSource

__all__ = ["NAMES", "SOURCES", "BenchPrompt", "PromptSet", "PromptSource", "canonical_name", "load"]
