"""The network as modules and pure functions of tensors: no files, no devices."""
