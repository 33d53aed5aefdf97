"""Judges that run networks on this machine: the real classes over tiny networks with random weights, or over fakes.

No real weights are here: that the numbers are good is for a machine that has them to show.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_vlm import make_tiny_vlm

from irg.evaluation.benchmarks.base import Question
from irg.evaluation.image_folders import ImageFile
from irg.evaluation.judges import geneval_detector as gd
from irg.evaluation.judges import hf
from irg.evaluation.judges.base import Job
from irg.evaluation.judges.ocr import OCRJudge
from irg.promptsets import BenchPrompt

CAT_PROMPT = BenchPrompt("0", "a red cat", "colors", {"include": [{"class": "cat", "count": 1, "color": "red"}]})


def job(folder: Path, question: Question, prompt: BenchPrompt = CAT_PROMPT, color: str = "red") -> Job:
    path = folder / f"{color}.png"
    Image.new("RGB", (32, 24), color).save(path)
    return Job(prompt, 0, 1, ImageFile(path), question)


# ---------------------------------------------------------------------------------- GenEval's detector


def mask(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    made = np.zeros((height, width), bool)
    made[box[1] : box[3], box[0] : box[2]] = True
    return made


def good_detector(image: Image.Image) -> list[gd.Found]:
    """Sees a stop sign in the test image, a cat in small ones, nothing in an empty one."""
    if image.size == (512, 512):
        plain = len(set(image.get_flattened_data() if hasattr(image, "get_flattened_data") else image.getdata())) == 1
        return [] if plain else [("stop sign", 0.99, mask(512, 512, (156, 90, 356, 290)))]
    return [("cat", 0.9, mask(24, 32, (2, 3, 10, 9))), ("cat", 0.4, np.zeros((24, 32), bool))]


def good_classifier(images, name):
    names = {(255, 0, 0): "red", (0, 0, 255): "blue", (0, 128, 0): "green", (255, 255, 0): "yellow"}
    return [names.get(image.getpixel((0, 0)), "white") for image in images]


def detector(detect=good_detector, classify_colors=good_classifier) -> gd.GenEvalDetector:
    return gd.GenEvalDetector(detect, classify_colors, {"detector": "fake"}, frozenset({"cat"}))


def test_boxes_and_the_colors_that_a_prompt_states(tmp_path: Path) -> None:
    judge = detector()
    ((_, answer),) = judge.answers([job(tmp_path, Question("detect", "objects"))])
    assert answer.raw == {"boxes": {"cat": [[2.0, 3.0, 10.0, 9.0, 0.9]]}, "colors": {"cat": ["red"]}}
    assert judge.covers(CAT_PROMPT)
    assert not judge.covers(BenchPrompt("1", "", "", {"include": [{"class": "dog", "count": 1}]}))


def test_an_object_stands_on_grey_cut_to_its_box() -> None:
    inside = mask(24, 32, (2, 3, 10, 9))
    inside[3, 2] = False
    cut = gd.on_gray(Image.new("RGB", (32, 24), "red"), inside, [2.0, 3.0, 10.0, 9.0])
    assert cut.size == (8, 6) and cut.getpixel((0, 0)) == (0x99, 0x99, 0x99) and cut.getpixel((1, 1)) == (255, 0, 0)
    assert gd.mask_box(np.zeros((4, 4), bool)) is None


@pytest.mark.parametrize(
    ("detect", "classify_colors", "message"),
    [
        (lambda image: [("person", 0.97, np.ones((512, 512), bool))], good_classifier, "'person' in an empty image"),
        (lambda image: [], good_classifier, "does not find a plain stop sign"),
        (lambda image: [("cat", float("nan"), np.ones((512, 512), bool))], good_classifier, "not finite"),
        (good_detector, lambda images, name: ["black"] * len(images), "color classifier is broken"),
    ],
)
def test_a_broken_detector_says_so_before_it_judges(tmp_path: Path, detect, classify_colors, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(detector(detect, classify_colors).answers([job(tmp_path, Question("detect", "objects"))]))


def test_without_self_test_the_label_says_so(tmp_path: Path) -> None:
    judge = gd.GenEvalDetector(lambda image: [], good_classifier, {}, frozenset({"cat"}), self_test=False)
    ((_, answer),) = judge.answers([job(tmp_path, Question("detect", "objects"))])
    assert answer.raw == {"boxes": {}, "colors": {}} and judge.label == "GenEval (HF detector, not self-tested)"
    assert judge.identity() != detector(lambda image: []).identity()


@pytest.mark.shared
def test_the_detectors_classes_are_genevals(official: Path) -> None:
    path = official / "geneval" / "object_names.txt"
    if not path.is_file():
        pytest.skip(f"no {path}")
    coco = """person bicycle car motorbike aeroplane bus train truck boat traffic_light fire_hydrant stop_sign
        parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie
        suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket
        bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut
        cake chair sofa pottedplant bed diningtable toilet tvmonitor laptop mouse remote keyboard cell_phone microwave
        oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"""
    names = [name.replace("_", " ") for name in coco.split()]
    ours = {gd._RENAMED.get(name, name) for name in names}
    assert ours == set(path.read_text().split("\n")) - {""}


def test_a_detector_that_changes_its_mind_is_broken() -> None:
    looks = iter(range(100))

    def fickle(image: Image.Image) -> list[gd.Found]:
        return [(name, score - 0.05 * next(looks), where) for name, score, where in good_detector(image)]

    with pytest.raises(ValueError, match="different objects in the same image"):
        detector(fickle).self_test()


def test_clip_colors_take_the_nearest_text() -> None:
    class Clip(torch.nn.Module):
        """An image's feature is its mean color; a text's that of the color it names."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def encode_image(self, batch_N3):
            return batch_N3

        def encode_text(self, ids_N):
            rows = {0: (1.0, 0.0, 0.0), 4: (0.0, 0.0, 1.0)}
            return torch.tensor([rows.get(int(i), (0.4, 0.4, 0.4)) for i in ids_N])

    def tokenizer(texts):
        assert [text.split()[-1] for text in texts] == ["car", "car", "object"]
        return torch.tensor([next(i for i, color in enumerate(gd.COLORS) if color in text) for text in texts])

    def transform(image):
        return torch.tensor(image.getpixel((0, 0))) / 255

    colors = gd.ClipColors(Clip(), transform, tokenizer, {})
    images = [Image.new("RGB", (4, 4), name) for name in ("blue", "red")]
    assert colors(images, "car") == ["blue", "red"]


def test_mask2former_boxes_with_random_weights(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra eval")
    swin = transformers.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=swin,
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=5,
        encoder_feedforward_dim=16,
        dim_feedforward=16,
        id2label={0: "cat", 1: "mouse", 2: "bus"},
        label2id={"cat": 0, "mouse": 1, "bus": 2},
    )
    torch.manual_seed(0)
    folder = tmp_path / "detector"
    transformers.Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    transformers.Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    boxes = gd.Mask2FormerBoxes.load(str(folder), torch.device("cpu"))
    assert boxes.names == {"cat", "computer mouse", "bus"}
    found = boxes(Image.new("RGB", (50, 40), "red"))
    assert found
    for name, score, inside in found:
        assert name in boxes.names and gd.MIN_SCORE < score <= 1 and inside.shape == (40, 50) and inside.any()
    with pytest.raises(ValueError, match=r"the (detector|color classifier) is broken"):
        gd.GenEvalDetector(boxes, good_classifier, {}, boxes.names).self_test()
    with pytest.raises(ValueError, match="neither a folder that is here nor a hub id"):
        gd.Mask2FormerBoxes.load(str(tmp_path / "nothing"), torch.device("cpu"))


# --------------------------------------------------------------------------- vision-language models


@pytest.fixture(scope="module")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_vlm(tmp_path_factory.mktemp("vlm"))


def test_a_local_model_is_corrected_a_bounded_number_of_times(tiny_vlm: Path, tmp_path: Path, monkeypatch) -> None:
    judge = hf.VisionLanguageJudge.load(str(tiny_vlm), "cpu", corrections=1)
    chat, lengths = judge._model.chat, []

    def ended(image, messages, max_tokens, temperature):
        """The random model goes on for ever; its first four letters are taken for its answer."""
        lengths.append(len(messages))
        return chat(image, messages, 4, temperature)[0] or "?", True

    monkeypatch.setattr(judge._model, "chat", ended)

    def check(text: str) -> None:
        raise ValueError("never good")

    jobs = [job(tmp_path, Question("chat", "a", "What?")), job(tmp_path, Question("chat", "b", "What?", check))]
    (_, plain), (_, refused) = judge.answers(jobs)
    assert plain.failure is None and isinstance(plain.raw, str)
    assert (refused.failure, refused.message, len(refused.raw)) == ("bad_answer", "never good", 2)
    assert lengths == [1, 1, 3]
    assert judge.identity()["fingerprint"] and judge.label == tiny_vlm.name


def test_a_local_answer_that_was_cut_off_is_no_answer(tiny_vlm: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(hf, "_MAX_TOKENS", 4)
    judge = hf.VisionLanguageJudge.load(str(tiny_vlm), "cpu", corrections=1)
    ((_, answer),) = judge.answers([job(tmp_path, Question("chat", "a", "What?"))])
    assert answer.failure == "bad_answer" and "cut off" in answer.message and answer.raw is None


def test_vqascore_of_a_local_model_is_a_probability_that_depends_on_the_image(tiny_vlm: Path, tmp_path: Path) -> None:
    judge = hf.VQAScoreJudge.load(str(tiny_vlm), "cpu")
    jobs = [job(tmp_path, Question("yes", "v", "Is it so?"), color=color) for color in ("red", "blue")]
    red, blue = (answer.raw for _, answer in judge.answers(jobs))
    assert 0 < red < 1 and 0 < blue < 1 and red != blue
    (job(tmp_path, Question("yes", "v", "?")).image.path).write_bytes(b"spoiled")
    ((_, answer),) = judge.answers([Job(CAT_PROMPT, 0, 1, ImageFile(tmp_path / "red.png"), jobs[0].question)])
    assert answer.failure == "unreadable"


def test_a_model_that_is_none_is_named(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra eval")
    with pytest.raises(ValueError, match="can't be loaded as a vision-language model"):
        hf.VisionLanguageJudge.load(str(tmp_path))


# ------------------------------------------------------------------------------------------------- OCR


def test_ocr_joins_lines(tmp_path: Path) -> None:
    class Engine:
        def __call__(self, pixels_HW3):
            assert pixels_HW3.shape == (24, 32, 3) and tuple(pixels_HW3[0, 0]) == (0, 0, 255)  # BGR
            return type("Output", (), {"txts": ("STOP", "now")})

    ((_, answer),) = OCRJudge(Engine()).answers([job(tmp_path, Question("ocr", "text"))])
    assert answer.raw == "STOP\nnow"


def test_ocr_reads_a_plain_text(tmp_path: Path) -> None:
    pytest.importorskip("rapidocr", reason="needs the extra eval")
    pytest.importorskip("onnxruntime", reason="needs the extra eval")
    from PIL import ImageDraw

    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 20), "OPEN DAY", fill="black", font_size=48)
    image.save(tmp_path / "text.png")
    one = Job(CAT_PROMPT, 0, 1, ImageFile(tmp_path / "text.png"), Question("ocr", "text"))
    ((_, answer),) = OCRJudge().answers([one])
    assert answer.raw.split() == ["OPEN", "DAY"]
