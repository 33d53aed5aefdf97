"""Files of weights in the formats that other programs write, made by hand to those formats' descriptions."""

import heapq
import json
from collections import Counter
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

LAYERS = "language_model.model.layers."


def projections(tensors: dict[str, Tensor]) -> list[str]:
    """Names of the decoder's linear layers."""
    return [k.removesuffix(".weight") for k, t in tensors.items() if k.startswith(LAYERS) and t.ndim == 2]


def rewrite(folder: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Put other tensors in the place of a folder's averaged weights."""
    contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(contiguous, folder / "ema.safetensors", metadata={"format": "pt"} | (metadata or {}))


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in load_file(folder / "ema.safetensors").items()}


# ------------------------------------------------------------------------------------------------------------ DFloat11

WINDOW_BYTES, BLOCK_WINDOWS = 8, 512


def huffman_codes(symbols: list[int]) -> dict[int, str]:
    """A code of bits for each symbol, and for the end (-1)."""
    order = count()
    heap = [(n, next(order), {symbol: ""}) for symbol, n in (Counter(symbols) | Counter({-1: 1})).items()]
    heapq.heapify(heap)
    while len(heap) > 1:
        (n, _, zeros), (m, _, ones) = heapq.heappop(heap), heapq.heappop(heap)
        merged = {s: "0" + c for s, c in zeros.items()} | {s: "1" + c for s, c in ones.items()}
        heapq.heappush(heap, (n + m, next(order), merged))
    return heap[0][2]


def lookup_tables(codes: dict[int, str]) -> Tensor:
    """``luts``: a table for each prefix of whole bytes, then the lengths."""
    real = {symbol: code for symbol, code in codes.items() if symbol >= 0}
    prefixes = sorted({code[: (len(code) - 1) // 8 * 8] for code in real.values()} | {""}, key=lambda p: (len(p), p))
    rows = torch.zeros(len(prefixes) + 1, 256, dtype=torch.uint8)
    for row, prefix in enumerate(prefixes):
        for symbol, code in real.items():
            rest = code[len(prefix) :]
            if not code.startswith(prefix) or not rest:
                continue
            if len(rest) <= 8:
                first = int(rest.ljust(8, "0"), 2)
                rows[row, first : first + (1 << (8 - len(rest)))] = symbol
            else:
                rows[row, int(rest[:8], 2)] = 256 - prefixes.index(code[: len(prefix) + 8])
    for symbol, code in real.items():
        rows[-1, symbol] = len(code)
    return rows


def dfloat11_parts(weights: list[Tensor]) -> dict[str, Tensor]:
    """bfloat16 weights as one group."""
    bits = torch.cat([w.flatten() for w in weights]).view(torch.int16).int() & 0xFFFF
    exponents = (bits >> 7 & 0xFF).tolist()
    codes = huffman_codes(exponents)
    position, gaps, positions, stream = 0, list[int](), list[int](), list[str]()
    for index, exponent in enumerate(exponents):
        window = position // (8 * WINDOW_BYTES)
        if window == len(gaps):
            gaps.append(position - window * 8 * WINDOW_BYTES)
        if window // BLOCK_WINDOWS == len(positions):
            positions.append(index)
        stream.append(codes[exponent])
        position += len(codes[exponent])
    text = "".join(stream) + codes[-1]
    text += "0" * (-len(text) % 8)
    encoded = [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]
    blocks = -(-len(encoded) // (WINDOW_BYTES * BLOCK_WINDOWS))
    gaps += [0] * (blocks * BLOCK_WINDOWS - len(gaps))
    gap_text = "".join(format(gap, "05b") for gap in gaps)
    return {
        "luts": lookup_tables(codes),
        "encoded_exponent": torch.tensor(encoded, dtype=torch.uint8),
        "sign_mantissa": (bits >> 8 & 0x80 | bits & 0x7F).to(torch.uint8),
        "gaps": torch.tensor([int(gap_text[i : i + 8], 2) for i in range(0, len(gap_text), 8)], dtype=torch.uint8),
        "output_positions": torch.tensor([*positions, len(exponents)], dtype=torch.int32).view(torch.uint8),
        "split_positions": torch.tensor([w.numel() for w in weights], dtype=torch.int64).cumsum(0)[:-1],
    }


def write_dfloat11(folder: Path, parts=dfloat11_parts) -> None:  # type: ignore[no-untyped-def]
    """Compress a folder's decoder layers, each as a group, and its language head, a group of its own."""
    tensors = weights_of(folder)
    modules: list[str] = []
    layers = sorted({key.removeprefix(LAYERS).split(".")[0] for key in tensors if key.startswith(LAYERS)})
    for layer in layers:
        prefix = f"{LAYERS}{layer}."
        modules = [name.removeprefix(prefix) for name in projections(tensors) if name.startswith(prefix)]
        made = parts([tensors.pop(f"{prefix}{module}.weight") for module in modules])
        tensors |= {prefix + part: tensor for part, tensor in made.items()}
    head = parts([tensors.pop("language_model.lm_head.weight")])
    tensors |= {f"language_model.lm_head.{part}": tensor for part, tensor in head.items()}
    rewrite(folder, tensors)
    config = json.loads((folder / "config.json").read_text())
    config["dfloat11_config"] = {
        "version": "0.5.0",
        "threads_per_block": [BLOCK_WINDOWS],
        "bytes_per_thread": WINDOW_BYTES,
        "pattern_dict": {r"language_model\.model\.layers\.\d+": modules, r"language_model\.lm_head": []},
    }
    (folder / "config.json").write_text(json.dumps(config))
