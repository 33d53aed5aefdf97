"""Forms in which weights are stored, besides plain tensors. One module for each; :mod:`.recognition` finds the one."""
