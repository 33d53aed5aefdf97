"""The version, without importing anything else."""

__version__ = "0.1.0"


def library_versions() -> dict[str, str]:
    """Versions of the packages that images and scores depend on."""
    from importlib.metadata import version

    return {"irg": __version__} | {name: version(name) for name in ("torch", "numpy", "pillow")}
