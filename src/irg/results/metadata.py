"""Settings inside PNG files: a ``parameters`` text as other tools show it, and everything as JSON in ``irg``."""

import json
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

CHUNK = "irg"


def png_info(details: dict[str, Any]) -> PngImagePlugin.PngInfo:
    """The text chunks of one image; ``details`` must be JSON values."""
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", parameters_text(details))
    info.add_itxt(CHUNK, json.dumps(details, ensure_ascii=False, allow_nan=False))
    return info


def parameters_text(details: dict[str, Any]) -> str:
    """The prompt, the negative prompt if there is one, then one line of ``Name: value`` pairs."""
    drawing = details.get("settings", {})
    low, high = drawing.get("cfg_interval", (None, None))
    pairs = {
        "Steps": drawing.get("num_timesteps"),
        "Sampler": "Euler",
        "CFG scale": drawing.get("cfg_text_scale"),
        "Image CFG scale": drawing.get("cfg_img_scale"),
        "CFG interval": None if low is None else f'"{low}, {high}"',
        "CFG renorm": drawing.get("cfg_renorm_type"),
        "Shift": drawing.get("timestep_shift"),
        "Seed": details.get("seed"),
        "Size": details.get("size"),
        "Model": _quoted(details.get("model")),
        "Model hash": (details.get("loaded", {}).get("fingerprint") or "")[:10] or None,
        "Mode": details.get("mode"),
        "Turn": details.get("turn"),
        "Version": f"irg {details.get('irg_version')}",
    }
    line = ", ".join(f"{name}: {value}" for name, value in pairs.items() if value is not None)
    negative = details.get("request_settings", {}).get("negative_prompt")
    return "\n".join([details.get("prompt", ""), *([f"Negative prompt: {negative}"] if negative else []), line])


def read_png_settings(path: str | Path) -> dict[str, Any]:
    """What :func:`png_info` wrote into an image.

    Raises:
        ValueError: the file is no readable PNG, or carries no settings of irg's.
    """
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(CHUNK)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not a readable PNG file: {getattr(error, 'strerror', None) or error}") from error
    if text is None:
        raise ValueError(f"{path}: this image carries no irg settings")
    try:
        details = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the irg settings are not valid JSON: {error}") from error
    if not isinstance(details, dict):
        raise ValueError(f"{path}: the irg settings are not a JSON object")
    return details


def _quoted(value: Any) -> Any:
    """Values with a comma or a colon are quoted, so that readers can split the line."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) and set(value) & set(',:"\n') else value
