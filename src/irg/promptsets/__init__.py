"""The prompts of the five benchmarks: where they officially live, fetched on request, read into typed prompts.

None of these files is part of the project: each set is fetched from its official home (pinned by sha256, kept in a
cache; what, how big and under which licence is said first) or read from a path.
"""

from irg.promptsets.load import NAMES, load, spelled
from irg.promptsets.registry import HOMES, Home
from irg.promptsets.sets import BenchPrompt, PromptSet

__all__ = ["HOMES", "NAMES", "BenchPrompt", "Home", "PromptSet", "load", "spelled"]
