"""GenEval's detector on today's libraries: transformers' Mask2Former for boxes, CLIP for colors.

The original runs on mmdet 2.x, with other weights; scores from this one are labeled "GenEval (HF detector)". Before it
judges anything it is tested on images whose content is known: detectors have been seen to fail silently on some GPUs.

Legend: H, W pixels; N boxes; C colors; F features.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from irg.evaluation.benchmarks.geneval_rules import COLORS
from irg.evaluation.judges.base import Answer, Job, JudgeOptions, pixels_or_failure
from irg.hub_downloads import only_cached
from irg.promptsets import BenchPrompt

DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = ("ViT-L-14-quickgelu", "openai")
MIN_SCORE = 0.05
"""Boxes with a lower score are not recorded; GenEval's rules begin at 0.3."""
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND = (0x99, 0x99, 0x99)
# COCO's names where GenEval has others
_RENAMED = {
    "mouse": "computer mouse",
    "keyboard": "computer keyboard",
    "remote": "tv remote",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "pottedplant": "potted plant",
    "diningtable": "dining table",
    "tvmonitor": "tv",
}

_HINT = " (only safetensors files are read; docs/benchmarks.md says how to make a folder of them)"

Found = tuple[str, float, np.ndarray]
"""Class, score, mask [H, W]."""


class GenEvalDetector:
    """Answers ``detect``.

    Args:
        detect: image -> detected objects.
        classify_colors: (cropped objects, class) -> the color of each.
        pins: names and versions of both networks.
        names: the classes that ``detect`` knows.
        self_test: run on known images before the first answer; without it the label says so.
    """

    kinds = frozenset({"detect"})

    def __init__(
        self,
        detect: Callable[[Image.Image], list[Found]],
        classify_colors: Callable[[Sequence[Image.Image], str], list[str]],
        pins: dict[str, Any],
        names: frozenset[str],
        self_test: bool = True,
    ) -> None:
        self._detect, self._classify_colors = detect, classify_colors
        self._pins, self._names = pins, names
        self._tested = not self_test
        self.label = "GenEval (HF detector)" if self_test else "GenEval (HF detector, not self-tested)"

    @classmethod
    def load(cls, folder: str | None = None, device: str | None = None, self_test: bool = True) -> "GenEvalDetector":
        """Load both networks: from the hub, or from ``folder`` (``detector/`` and ``clip.safetensors`` in it).

        Raises:
            ValueError: a package is missing, or a network can't be loaded.
        """
        where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        detector = Mask2FormerBoxes.load(DETECTOR if folder is None else str(Path(folder) / "detector"), where)
        classifier = ClipColors.load(None if folder is None else Path(folder) / "clip.safetensors", where)
        return cls(detector, classifier, detector.pins | classifier.pins, detector.names, self_test)

    def identity(self) -> dict[str, Any]:
        return {"judge": "geneval", "label": self.label, **self._pins}

    def covers(self, prompt: BenchPrompt) -> bool:
        clauses = [*prompt.metadata.get("include", ()), *prompt.metadata.get("exclude", ())]
        return all(clause["class"] in self._names for clause in clauses)

    def answers(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        if not self._tested:
            self.self_test()
        for job in jobs:
            image = pixels_or_failure(job)
            yield job, image if isinstance(image, Answer) else Answer(self.detect(image, job.prompt))

    def detect(self, image: Image.Image, prompt: BenchPrompt) -> dict[str, Any]:
        """Boxes of all objects, and the colors of those classes whose color the prompt states."""
        colored = {clause["class"] for clause in prompt.metadata.get("include", ()) if "color" in clause}
        boxes: dict[str, list[list[float]]] = {}
        crops: dict[str, list[Image.Image]] = {}
        for name, score, mask_HW in self._detect(image):
            box = mask_box(mask_HW)
            if box is None:
                continue
            boxes.setdefault(name, []).append([*box, round(score, 4)])
            if name in colored:
                crops.setdefault(name, []).append(on_gray(image, mask_HW, box))
        colors = {name: self._classify_colors(images, name) for name, images in crops.items()}
        return {"boxes": boxes, "colors": colors}

    def self_test(self) -> None:
        """Run both networks on images whose content is known.

        Raises:
            ValueError: the detector finds objects in an empty image, its output changes from one run to the next or
                is not finite, or the colors of plain squares are wrong.
        """
        plain = Image.new("RGB", (512, 512), BACKGROUND)
        scene = _test_image()
        empty, first, second = self._detect(plain), self._detect(scene), self._detect(scene)
        if not all(np.isfinite(score) and 0 <= score <= 1 for _, score, _ in (*empty, *first)):
            raise ValueError("the detector is broken: its scores are no probabilities (not finite, or outside 0..1)")
        seen = [(name, score) for name, score, _ in empty if score > 0.9]
        if seen:
            raise ValueError(f"the detector is broken: it finds {seen[0][0]!r} in an empty image")
        if [(n, round(s, 3)) for n, s, _ in first] != [(n, round(s, 3)) for n, s, _ in second]:
            raise ValueError("the detector is broken: it finds different objects in the same image")
        if not any(name == "stop sign" and score > 0.3 for name, score, _ in first):
            raise ValueError("the detector is broken: it does not find a plain stop sign; try another device")
        squares = {name: Image.new("RGB", (224, 224), name) for name in ("red", "blue", "green", "yellow")}
        found = dict(zip(squares, self._classify_colors(list(squares.values()), "car"), strict=True))
        if any(found[name] != name for name in squares):
            raise ValueError(f"the color classifier is broken: plain squares are {found}")
        self._tested = True


def _test_image() -> Image.Image:
    """A stop sign on a pole before a pale sky: the plainest of the 80 classes to draw."""
    from PIL import ImageDraw

    image = Image.new("RGB", (512, 512), (170, 200, 230))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 430, 512, 512), fill=(110, 130, 90))
    draw.rectangle((250, 260, 262, 470), fill=(120, 120, 125))
    draw.regular_polygon((256, 190, 108), 8, rotation=22.5, fill="white")
    draw.regular_polygon((256, 190, 100), 8, rotation=22.5, fill=(190, 25, 30))
    draw.text((256, 190), "STOP", fill="white", anchor="mm", font_size=62)
    return image


def mask_box(mask_HW: np.ndarray) -> list[float] | None:
    """(x1, y1, x2, y2) around a mask; None when it is empty."""
    ys, xs = np.nonzero(mask_HW)
    if not len(xs):
        return None
    return [float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)]


def on_gray(image: Image.Image, mask_HW: np.ndarray, box: Sequence[float]) -> Image.Image:
    """The masked object on a #999 background, cut to its box."""
    mask = Image.fromarray((mask_HW > 0).astype(np.uint8) * 255)
    x1, y1, x2, y2 = (int(value) for value in box)
    return Image.composite(image, Image.new("RGB", image.size, BACKGROUND), mask).crop((x1, y1, x2, y2))


class Mask2FormerBoxes:
    """Instance masks of a Mask2Former of the transformers library."""

    def __init__(self, model: Any, processor: Any, pins: dict[str, Any]) -> None:
        self._model, self._processor, self.pins = model.eval(), processor, pins
        self._labels = {index: _RENAMED.get(name, name) for index, name in model.config.id2label.items()}
        self.names = frozenset(self._labels.values())

    @classmethod
    def load(cls, name: str, device: torch.device) -> "Mask2FormerBoxes":
        try:
            from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation
        except ImportError as error:
            raise ValueError(f"the judge geneval needs transformers ({error}): pip install 'irg[eval]'") from error
        cached = only_cached(name)
        try:
            model = Mask2FormerForUniversalSegmentation.from_pretrained(
                name, use_safetensors=True, local_files_only=cached
            ).to(device)
            processor = AutoImageProcessor.from_pretrained(name, local_files_only=cached)
        except (OSError, ValueError, ImportError) as error:
            raise ValueError(f"{name}: can't be loaded as a Mask2Former: {error}{_HINT}") from error
        revision = getattr(model.config, "_commit_hash", None)
        return cls(model, processor, {"detector": name, "revision": revision, "transformers": version("transformers")})

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> list[Found]:
        """Every (query, class) with its mask; the score is class probability x mean probability in the mask."""
        inputs = self._processor(images=image, return_tensors="pt").to(self._model.device)
        output = self._model(**inputs)
        probabilities_NK = output.class_queries_logits[0].float().softmax(-1)[:, :-1]  # the last class is "nothing"
        if not bool(probabilities_NK.isfinite().all()):
            return [(next(iter(self._labels.values())), float("nan"), np.ones((image.height, image.width), bool))]
        masks_Nhw = output.masks_queries_logits[0].float()
        found: list[Found] = []
        for query in torch.nonzero(probabilities_NK.amax(-1) > MIN_SCORE).flatten().tolist():
            logits_HW = torch.nn.functional.interpolate(
                masks_Nhw[None, query : query + 1], (image.height, image.width), mode="bilinear", align_corners=False
            )[0, 0]
            inside_HW = logits_HW > 0
            if not bool(inside_HW.any()):
                continue
            mask_score = float(logits_HW.sigmoid()[inside_HW].mean())
            for label in torch.nonzero(probabilities_NK[query] * mask_score > MIN_SCORE).flatten().tolist():
                score = float(probabilities_NK[query, label]) * mask_score
                found.append((self._labels[label], score, inside_HW.cpu().numpy()))
        return found


class ClipColors:
    """Zero-shot color classification by CLIP: the mean of three templates' text features for each color."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, pins: dict[str, Any]) -> None:
        self._model, self._transform, self._tokenizer, self.pins = model.eval(), transform, tokenizer, pins
        self._heads: dict[str, torch.Tensor] = {}
        self._device = next(model.parameters()).device

    @classmethod
    def load(cls, weights: Path | None, device: torch.device) -> "ClipColors":
        try:
            import open_clip
        except ImportError as error:
            raise ValueError(f"the judge geneval needs open_clip ({error}): pip install 'irg[eval]'") from error
        name, trained = CLIP
        if weights is not None and not weights.is_file():
            raise ValueError(f"{weights}: missing (the weights of CLIP {name})")
        try:
            source = trained if weights is None else str(weights)
            model, _, transform = open_clip.create_model_and_transforms(name, pretrained=source, device=device)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"CLIP {name} can't be loaded: {error}") from error
        pins = {"clip": f"{name} {source}", "open_clip": _version("open_clip_torch")}
        return cls(model, transform, open_clip.get_tokenizer(name), pins)

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], name: str) -> list[str]:
        batch = torch.stack([self._transform(image) for image in images]).to(self._device)
        features_NF = torch.nn.functional.normalize(self._model.encode_image(batch).float(), dim=-1)
        best_N = (features_NF @ self._head(name).T).argmax(-1)
        return [COLORS[int(index)] for index in best_N]

    def _head(self, name: str) -> torch.Tensor:
        """Text features [C, F] of the colors of a class."""
        if name not in self._heads:
            rows = []
            for color in COLORS:
                texts = self._tokenizer([template.format(color=color, name=name) for template in TEMPLATES])
                features = torch.nn.functional.normalize(
                    self._model.encode_text(texts.to(self._device)).float(), dim=-1
                )
                rows.append(torch.nn.functional.normalize(features.mean(0), dim=-1))
            self._heads[name] = torch.stack(rows)
        return self._heads[name]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def make(rest: str, options: JudgeOptions) -> GenEvalDetector:
    """geneval[:FOLDER], Mask2Former and CLIP of the Hugging Face hub, or in FOLDER (GenEval)."""
    return GenEvalDetector.load(rest or None, options.device, not options.no_self_test)
