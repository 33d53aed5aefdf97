"""Every reader of bytes that others have written, each with valid files to start from.

A reader may return or raise ``ValueError`` (or the error of its interface that becomes an answer to a client).
"""

import base64
import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Read = Callable[[Path, bytes], object]
"""Takes a folder of its own and the bytes."""


@dataclass(frozen=True)
class Reader:
    """``weight``: inputs for every one of the others'."""

    name: str
    read: Read
    seeds: tuple[bytes, ...]
    weight: float = 1.0


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


# -------------------------------------------------------------------------------------------------------------- weights


def _safetensors(metadata: dict[str, str] | None = None, **shapes: tuple[int, ...]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, metadata)


def _read_weights(folder: Path, content: bytes) -> None:
    from irg.model.weights.formats.recognition import read_weights
    from irg.model.weights.manifest import read_header, read_metadata

    path = _put(folder, "weights.safetensors", content)
    read_header(path)
    read_metadata(path)
    read_weights(path)


def _read_index(folder: Path, content: bytes) -> None:
    from irg.model.weights.manifest import read_entries

    _put(folder, "a.safetensors", _safetensors(x=(2,)))
    read_entries(_put(folder, "model.safetensors.index.json", content))


def _gguf() -> tuple[bytes, ...]:
    def text(value: str) -> bytes:
        return len(value).to_bytes(8, "little") + value.encode()

    pairs = text("general.architecture") + (8).to_bytes(4, "little") + text("bagel")
    tensor = text("x") + (1).to_bytes(4, "little") + (32).to_bytes(8, "little") + bytes(4) + bytes(8)
    head = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + (1).to_bytes(8, "little") + pairs + tensor
    return (head + bytes(-len(head) % 32) + bytes(128),)


def _read_gguf(folder: Path, content: bytes) -> None:
    from irg.model.weights.formats.gguf import read_gguf

    read_gguf(_put(folder, "weights.gguf", content))


def _read_adapter(folder: Path, content: bytes) -> None:
    from irg.model.weights.adapter_files import read_adapter

    settings, _, weights = content.partition(b"\n\n")
    _put(folder, "adapter_config.json", settings)
    _put(folder, "adapter_model.safetensors", weights)
    read_adapter(folder)


def _adapters() -> tuple[bytes, ...]:
    root = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_"
    weights = _safetensors(None, **{f"{root}A.weight": (2, 4), f"{root}B.weight": (4, 2)})
    return (_json({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}) + b"\n\n" + weights,)


# ------------------------------------------------------------------------------------------------------- configurations


def _configs() -> tuple[bytes, ...]:
    from irg.model.network.config import tiny
    from irg.model.weights.config_files import bagel_sections, to_sections

    ours = _json(to_sections(tiny()))
    bagel = _json(bagel_sections(tiny()))
    return (ours, bagel, b'{"name": ["BAGEL-7B-MoT"],}')


def _read_config(folder: Path, content: bytes) -> None:
    from irg.model.weights.config_files import read_config

    for file in folder.glob("*.json"):
        file.unlink()
    try:
        sections = json.loads(content)
    except (ValueError, RecursionError):
        sections = None
    if isinstance(sections, dict) and "llm_config.json" in sections:  # BAGEL's, a file each
        for name in sections.keys() & {"config.json", "llm_config.json", "vit_config.json"}:
            _put(folder, name, _json(sections[name]))
    else:
        _put(folder, "config.json", content)
    read_config(folder)


def _read_profile(folder: Path, content: bytes) -> None:
    from irg.model.weights.profile import FILE, read_profile

    _put(folder, FILE, content)
    read_profile(folder)


def _profiles() -> tuple[bytes, ...]:
    import tempfile

    from irg.model.weights.profile import FILE, Profile

    with tempfile.TemporaryDirectory() as name:
        Profile("x", system_prompt="Draw.").save(Path(name))
        return ((Path(name) / FILE).read_bytes(),)


def _tokenizers() -> tuple[bytes, ...]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:24]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
    return (tokenizer.to_str().encode(),)


def _read_tokenizer(folder: Path, content: bytes) -> None:
    from irg.model.weights.tokenizer import TextTokenizer

    _put(folder, "tokenizer.json", content)
    TextTokenizer.from_folder(folder).encode("a cat")


def _read_vocabulary(folder: Path, content: bytes) -> None:
    from irg.model.weights.tokenizer import TextTokenizer

    vocabulary, _, merges = content.partition(b"\n\n")
    _put(folder, "vocab.json", vocabulary)
    _put(folder, "merges.txt", merges)
    TextTokenizer.from_folder(folder).encode("a cat")


# ----------------------------------------------------------------------------------------------------------------- rows


def _picture(kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((12, 10)).convert(mode).save(file, kind, **options)
    return file.getvalue()


def _row_files() -> tuple[bytes, ...]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from irg.learning.data.schema import COLUMNS

    image = {"bytes": _picture(), "path": None}
    rows = [{"prompt": "p", "thinking": "t", "image": image, "reflection": None, "improved": None}]
    rows += [rows[0] | {"reflection": "r", "improved": image}]
    conversation = [{"conversation": _conversations()[0].decode()}]
    found = []
    for table in (pa.Table.from_pylist(rows, pa.schema(list(COLUMNS.items()))), pa.Table.from_pylist(conversation)):
        for compression in ("none", "snappy"):
            file = io.BytesIO()
            pq.write_table(table, file, compression=compression)
            found.append(file.getvalue())
    return tuple(found)


def _read_rows(folder: Path, content: bytes) -> None:
    from irg.curation.check import validate
    from irg.curation.sources import _texts
    from irg.learning.data.row_source import content_digest

    path = _put(folder, "rows.parquet", content)
    validate(path)
    with contextlib.suppress(ValueError):
        list(_texts(path, "prompt"))
    content_digest(path)


def _conversations() -> tuple[bytes, ...]:
    png = base64.b64encode(_picture()).decode()
    ours = [
        {"role": "user", "content": "a cat"},
        {
            "role": "assistant",
            "content": [{"type": "text", "content": "I draw."}, {"type": "image", "content": png, "need_vae": True}],
        },
    ]
    openai = [{"from": "human", "value": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}]}]
    return (_json(ours), _json([*openai, {"from": "gpt", "value": "a cat"}]))


def _read_conversation(_: Path, content: bytes) -> None:
    from irg.learning.data.conversations import parse_conversation
    from irg.text_files import decoded

    parse_conversation(decoded(content), "row")


# --------------------------------------------------------------------------------------------------------------- images


def _pictures() -> tuple[bytes, ...]:
    from PIL import features

    kinds = [("PNG", "RGBA"), ("PNG", "I;16"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "RGB"), ("GIF", "P")]
    kinds += [("TIFF", "RGB"), ("TIFF", "F"), ("BMP", "RGB"), ("PPM", "RGB"), ("QOI", "RGB")]
    kinds += [("WEBP", "RGBA")] * features.check("webp") + [("AVIF", "RGB")] * features.check("avif")
    kinds += [("JPEG2000", "RGB")] * features.check("jpg_2000")
    found = [_picture(kind, mode) for kind, mode in kinds]
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = io.BytesIO()
    still = Image.new("P", (6, 6))
    still.save(frames, "GIF", save_all=True, append_images=[Image.new("P", (6, 6), 3)])
    return (*found, _picture("JPEG", exif=exif), frames.getvalue(), _picture("TIFF", compression="tiff_lzw"))


def _read_image(_: Path, content: bytes) -> None:
    from irg.image_files import open_image

    open_image(content, say=lambda line: None)


def _read_sent_image(_: Path, content: bytes) -> None:
    from irg.serving.image_data import decode, from_base64

    decode(from_base64(content.decode("utf-8", "surrogateescape"), "image"), 1 << 20, "image")


def _read_png_settings(folder: Path, content: bytes) -> None:
    from irg.results.metadata import parameters_text, read_png_settings

    parameters_text(read_png_settings(_put(folder, "a.png", content)))


def _trajectory() -> Any:
    from irg.results.trajectory import Trajectory, Turn

    image = Image.new("RGB", (8, 8), "red")
    return Trajectory(
        "a cat", "irg", 1, "mini", {}, [Turn("t", image, {"a": 1}, {"drawing": 0.5}, 3), Turn("r", image)]
    )


def _read_trajectory(folder: Path, content: bytes) -> None:
    from irg.results.trajectory import Trajectory

    _put(folder, "trajectory.json", content)
    for name in ("initial.png", "improved.png"):
        if not (folder / name).exists():
            _put(folder, name, _picture())
    Trajectory.load(folder)._files()


# -------------------------------------------------------------------------------------------------- judges and teachers


def _read_judge(_: Path, content: bytes) -> None:
    from irg.critics import form
    from irg.evaluation.benchmarks import oneig, tiif, wise
    from irg.results.reflection import Reflection, is_done, sections

    text = content.decode("utf-8", "replace")
    readers: list[Callable[[], object]] = [
        lambda: form.read(text),
        lambda: wise.wiscore(wise.parse(text, "tolerant")),
        lambda: wise.wiscore(wise.parse(text, "strict")),
        lambda: tiif.right(tiif.parse(text), ["yes", "no"]),
        lambda: oneig.text_match(["a cat"], oneig.clean_ocr(text)),
        lambda: (sections(text), is_done(text)),
        lambda: Reflection.parse(text),
    ]
    for read in readers:
        with contextlib.suppress(ValueError):
            read()


def _read_endpoint(_: Path, content: bytes) -> None:
    from irg.endpoints.answers import check_error, counts, quoted, text_of
    from irg.text_files import parse_json

    answer = parse_json(content)
    if isinstance(answer, dict):
        quoted(answer)
        counts(answer.get("usage"))
        check_error(answer, "http://x")
        text_of(answer)


_ANSWERS = (
    b"Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
    b"**Consistency**: 2.0\n**Realism**: 1/2\n**Aesthetic Quality**: 0-2 -> 2",
    b"1. yes\n2. **No**",
    b'{"wrong": "a dog", "change": "draw a cat", "done": false, "score": 3}',
    b"<think>hm</think>```json\n{}\n```",
    b"1. Wrong: the cat is a dog.\nWhat to change: draw a cat.\n",
)
_ENDPOINT = (
    _json({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}),
    _json({"choices": [{"message": {"content": [{"type": "text", "text": "hi"}], "refusal": None}}]}),
    _json({"error": {"message": "no credit", "code": 402}}),
    _json({"choices": [{"message": {"reasoning_content": "hm", "content": "<think>a</think>b"}}]}),
)


# ----------------------------------------------------------------------------------------------- prompts, recipes, runs


def _read_prompts(folder: Path, content: bytes) -> None:
    from irg.cli.requests import _read
    from irg.curation.sources import _texts

    for name in ("p.txt", "p.csv", "p.tsv", "p.jsonl", "p.json"):
        path = _put(folder, name, content)
        with contextlib.suppress(ValueError):
            _read(str(path), 0, True)
        with contextlib.suppress(ValueError):
            list(_texts(path, "prompt"))


_PROMPTS = (
    b"a cat\r\na dog\r\n",
    b'\xef\xbb\xbf{"prompt": "a cat", "seed": 3}\n{"prompt": "a dog", "image": "x.png"}\n',
    b'id,prompt,seed\n1,"a cat, red",3\n2,a dog,4\n',
    b'[{"prompt": "a cat"}, "a dog"]',
    "a cat\na dog\n".encode("utf-16"),
)


def _read_bench_prompts(folder: Path, content: bytes) -> None:
    from irg import promptsets

    for name, file in (("geneval", "p.jsonl"), ("wise", "p.json"), ("genai_bench", "p.json"), ("oneig", "p.csv")):
        path = _put(folder, file, content)
        with contextlib.suppress(ValueError):
            promptsets.load(name, path, say=lambda line: None)


_BENCH_PROMPTS = (
    _json({"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}),
    _json([{"Prompt": "a", "Explanation": "b", "Category": "Time", "Subcategory": "c", "prompt_id": 1}]),
    _json({"00001": {"id": "00001", "prompt": "a", "models": {}, "prompt in Chinese": "x"}}),
    b"category,id,prompt_en,type,prompt_length,class\nAnime_Stylization,000,a,T,short,None\n",
)


def _read_recipe(folder: Path, content: bytes) -> None:
    from irg import recipes
    from irg.curation.recipe import DataRecipe
    from irg.learning.recipe import TrainRecipe
    from irg.learning.rl.recipe import RLRecipe

    path = _put(folder, "r.yaml", content)
    recipes.peek(path, "kind")
    for kind in (TrainRecipe, RLRecipe, DataRecipe):
        with contextlib.suppress(ValueError):
            recipes.load(kind, path)  # type: ignore[type-var]


def _recipes() -> tuple[bytes, ...]:
    folder = Path(__file__).parents[2] / "recipes"
    return tuple(path.read_bytes() for path in sorted(folder.rglob("*.yaml")))


def _read_run(folder: Path, content: bytes) -> None:
    from irg.evaluation.results import Result
    from irg.evaluation.runs import RunInfo, read_trajectory
    from irg.files import read_json_lines
    from irg.learning.checkpoints import read_about
    from irg.learning.recipe import Mixture, TrainRecipe
    from irg.learning.resume_check import differences

    for name in ("run.json", "result.json", "state.json", "recipe.json", "a.jsonl"):
        _put(folder, name, content)
    recipe = TrainRecipe(model="mini", data=("x",), out="o", steps=1, mixture=Mixture(initial_full=1.0))
    readers: list[Callable[[], object]] = [
        lambda: RunInfo.load(folder),
        lambda: Result.load(folder / "result.json"),
        lambda: read_trajectory(folder / "run.json"),
        lambda: read_json_lines(folder / "a.jsonl"),
        lambda: read_about(folder),
        lambda: differences(recipe, folder),
    ]
    for read in readers:
        with contextlib.suppress(ValueError):
            read()


def _runs() -> tuple[bytes, ...]:
    from dataclasses import asdict

    from irg.evaluation.runs import RunInfo

    info = RunInfo("geneval", "v", "0", "s", True, "MIT", ("00000",), 1, None, 1, 1, "m", "f", "m", "irg", {}, 0)
    turn = {"seconds": {}, "tokens": 1}
    return (
        _json(asdict(info)),
        _json({"turns": [turn]}),
        b'{"images": 1}\n{"images": 2}\n',
        _json({"step": 1, "streams": 1, "data": []}),
    )


# ---------------------------------------------------------------------------------------------------- HTTP and commands


def _read_request(_: Path, content: bytes) -> None:
    from irg.serving.chat_api import ChatRequest
    from irg.serving.conversation import asked
    from irg.serving.responses_api import ResponsesRequest
    from irg.serving.schemas import EditRequest, ImageRequest

    for kind in (ImageRequest, EditRequest, ResponsesRequest):
        with contextlib.suppress(ValueError):
            kind.model_validate_json(content)
    asked(ChatRequest.model_validate_json(content).messages, "messages")


_REQUESTS = (
    _json({"prompt": "a cat", "n": 2, "size": "64x64", "seed": 1, "stream": True, "quality": "low"}),
    _json({"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}),
    _json(
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}
            ]
        }
    ),
    _json({"input": "a cat", "tools": [{"type": "image_generation", "size": "64x64"}]}),
)


def _run_command(folder: Path, content: bytes) -> None:
    """A command line, a word a line, in an empty folder: an exit code and no exception. No model is ever loaded."""
    from irg.cli import ask, running
    from irg.cli.main import main

    def refused(*_: Any, **__: Any) -> Any:
        raise ValueError("no model here")

    words = content.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
    kept, before = (running.load, ask.load), Path.cwd()
    os.chdir(folder)
    running.load = ask.load = refused  # type: ignore[assignment]
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        running.load, ask.load = kept
        os.chdir(before)
    assert code in (0, 2), f"exit code {code}"
    assert code == 0 or err.getvalue().strip() or out.getvalue().strip(), "a refusal without a word"
    assert "Traceback" not in err.getvalue()


_COMMANDS = (
    b"generate\na cat\n--mode\nirg\n--size\n64x64\n--seed\n3\n--model\nnowhere",
    b"generate\n--prompts-file\np.txt\n-n\n2\n--cfg-interval\n0.4,1\n--out\no",
    b"improve\na.png\n--prompt\na cat\n--rounds\n2\n--critic\nendpoint:x",
    b"edit\na.png\nmake it red\n--think",
    b"ask\na.png\nwhat is it?\n--max-tokens\n5",
    b"bench\nrun\ngeneval\n--model\nnowhere\n--prompts\np.jsonl\n--limit\n3",
    b"bench\nscore\nwise\n--images\nd\n--judge\nopenai:x\n--max-tokens\n5",
    b"bench\ntable\na\nb\n--format\ncsv",
    b"data\nvalidate\nd",
    b"data\nstatus\nr.yaml",
    b"train\nr.yaml\n--steps\n3\n--optimizer.lr\n1e-3\n--dry-run",
    b"model\ninfo\nnowhere\n--memory\nint4",
    b"model\nconvert\na\nb\n--quantize\nint8",
    b"train\nreport\nrun",
)

READERS = (
    Reader("safetensors", _read_weights, (_safetensors({"format": "pt"}, x=(2, 3), y=(4,)), _safetensors(z=(1,)))),
    Reader("shard-index", _read_index, (_json({"metadata": {}, "weight_map": {"x": "a.safetensors"}}),)),
    Reader("gguf", _read_gguf, _gguf()),
    Reader("adapter", _read_adapter, _adapters()),
    Reader("config", _read_config, _configs()),
    Reader("profile", _read_profile, _profiles()),
    Reader("tokenizer", _read_tokenizer, _tokenizers()),
    Reader("vocabulary", _read_vocabulary, (b'{"a": 0, "b": 1, "ab": 2}\n\n#version: 0.2\na b\n',)),
    Reader("rows", _read_rows, _row_files()),
    Reader("conversation", _read_conversation, _conversations()),
    Reader("image", _read_image, _pictures(), 3),
    Reader("sent-image", _read_sent_image, (b"data:image/png;base64," + base64.b64encode(_picture()), b"iVBORw0KGgo=")),
    Reader("png-settings", _read_png_settings, (_trajectory()._files()["initial.png"],)),
    Reader("trajectory", _read_trajectory, (_json(_trajectory().to_dict()),)),
    Reader("judge", _read_judge, _ANSWERS, 2),
    Reader("endpoint", _read_endpoint, _ENDPOINT),
    Reader("prompts", _read_prompts, _PROMPTS),
    Reader("bench-prompts", _read_bench_prompts, _BENCH_PROMPTS),
    Reader("recipe", _read_recipe, _recipes(), 0.1),
    Reader("run", _read_run, _runs()),
    Reader("request", _read_request, _REQUESTS),
    Reader("command", _run_command, _COMMANDS, 0.05),
)
