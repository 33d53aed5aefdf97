"""Formats in which weights are stored, besides plain tensors: a module for each; :mod:`.recognition` finds it."""
