"""Formats of weights that are known and not read: they are refused by name."""

import re
from collections.abc import Iterable
from pathlib import Path

KNOWN = {  # a key that only this format has
    r".+\.(qweight|qzeros|g_idx)": "packed integers of GPTQ, AWQ or AutoRound",
    r".+\.(weight_packed|weight_zero_point)": "packed integers of compressed-tensors (vLLM, llm-compressor)",
    r".+\.weight_scale_2": "nvfp4 (ModelOpt, ComfyUI)",
    r".+\.(weight\._data|weight\._scale|weight\.qtype)": "quanto (diffusers, optimum)",
    r".+\.(wscales|wtscale|proj_down|smooth_factor)": "SVDQuant (Nunchaku)",
    r".+(\.weight:|\._weight_)(qdata|scale|zero_point|tensor_data|int_data)": "torchao",
    r".+\.(trellis|suh|svh|q_scale_max)": "EXL2 or EXL3 (ExLlama)",
    r".+\.W_q": "HQQ",
}


def refuse(path: Path, keys: Iterable[str]) -> None:
    """Refuse a file by the first key that gives its format away.

    Raises:
        ValueError: it is of a known format that is not read.
    """
    for key in keys:
        for pattern, name in KNOWN.items():
            if re.fullmatch(pattern, key):
                raise ValueError(
                    f"{path} holds weights as {name}, which are not read ({key}): start from the bf16 weights "
                    "(irg model convert FOLDER OUT --quantize int4 makes them small)"
                )
