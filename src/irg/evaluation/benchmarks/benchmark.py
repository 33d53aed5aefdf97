"""The five benchmarks as one kind of thing: what to ask about an image, how to grade the answers, how to sum up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from irg.evaluation.benchmarks import genai_bench, geneval, oneig, tiif, wise
from irg.evaluation.benchmarks.rubrics import ONEIG_ALIGNMENT, READ_TEXT, tiif_question, wise_question
from irg.evaluation.image_folders import LAYOUTS, Layout
from irg.promptsets import HOMES, BenchPrompt

Kind = Literal["detect", "chat", "yes", "ocr", "reasoning", "style", "diversity"]
"""What a judge can be asked for: boxes with colors, a text, P("Yes"), the text in an image, a number of its own."""


@dataclass(frozen=True)
class Ask:
    """One question about one image.

    Attributes:
        name: which of the benchmark's questions it is, unique for an image.
        text: for ``chat`` and ``yes`` the question, for ``ocr`` the instruction to a chat model.
        check: raises ValueError when an answer can't be used; a chat judge then asks again, a bounded number of times.
    """

    kind: Kind
    name: str
    text: str = ""
    check: Callable[[str], Any] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Grade:
    """What the answers come to.

    Attributes:
        score: of this image, 0..1.
        right: what repair and damage are counted over: one value an image, or one a question.
        detail: shown in the report.
        facts: what sums need beside the score.
    """

    score: float
    right: tuple[bool, ...]
    detail: str = ""
    facts: Any = None


@dataclass(frozen=True)
class Graded:
    """An image with its grade; ``grade`` is None when it is missing and counts as all wrong."""

    prompt: BenchPrompt
    sample: int
    grade: Grade | None


@dataclass(frozen=True)
class Options:
    """Choices that a protocol leaves open."""

    wise_parse: wise.Parse = "tolerant"
    geneval_counting_above: float = geneval.COUNTING_SCORE_ABOVE
    rubric: str | None = None
    """Text of WISE's judging instruction with {prompt} and {explanation}; None: ours."""
    tiif_text: bool = False
    """Also read the text in TIIF's images of text, for GNED and recall."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        asks: the questions about one image of a prompt.
        grade: the raw answers by name -> their grade; ValueError when they can't be read.
        summarize: all images -> the benchmark's numbers, of which ``columns`` are its table.
        unit: what one of ``Grade.right`` is.
    """

    name: str
    columns: tuple[str, ...]
    asks: Callable[[BenchPrompt, Options], list[Ask]]
    grade: Callable[[BenchPrompt, dict[str, Any], Options], Grade]
    summarize: Callable[[Sequence[Graded]], dict[str, float]]
    unit: str = "image"

    @property
    def title(self) -> str:
        return HOMES[self.name].title

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.name]


# ------------------------------------------------------------------------------------------------ GenEval


def _geneval_grade(prompt: BenchPrompt, answers: dict[str, Any], options: Options) -> Grade:
    found = answers["objects"]
    verdict = geneval.judge(
        prompt.metadata, found["boxes"], found.get("colors"), counting_above=options.geneval_counting_above
    )
    seen = ", ".join(f"{count} {name}" for name, count in verdict.kept.items()) or "nothing"
    return Grade(float(verdict.correct), (verdict.correct,), f"{verdict.reason or 'as asked'} (seen: {seen})")


def _geneval_sum(graded: Sequence[Graded]) -> dict[str, float]:
    return geneval.summarize((one.prompt.id, one.prompt.tag, bool(one.grade and one.grade.score)) for one in graded)


# --------------------------------------------------------------------------------------------------- WISE


def _wise_asks(prompt: BenchPrompt, options: Options) -> list[Ask]:
    wise.category(int(prompt.id))  # an id that has none shows before anything is judged

    def check(text: str) -> None:
        wise.wiscore(wise.parse(text, options.wise_parse))

    text = wise_question(prompt.text, prompt.metadata.get("Explanation", ""), options.rubric)
    return [Ask("chat", "scores", text, check)]


def _wise_grade(prompt: BenchPrompt, answers: dict[str, Any], options: Options) -> Grade:
    scores = wise.parse(answers["scores"], options.wise_parse)
    detail = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in scores.items())
    return Grade(wise.wiscore(scores), (scores["consistency"] == wise.HIGHEST,), detail)


def _wise_sum(graded: Sequence[Graded]) -> dict[str, float]:
    return wise.summarize((int(one.prompt.id), one.grade.score if one.grade else 0.0) for one in graded)


# --------------------------------------------------------------------------------------------- TIIF-Bench


def _tiif_asks(prompt: BenchPrompt, options: Options) -> list[Ask]:
    if prompt.tag not in tiif.GROUP_OF:
        raise ValueError(f"unknown TIIF attribute {prompt.tag!r}; there are {', '.join(tiif.ATTRIBUTES)}")
    truth = prompt.metadata.get("answers")
    if truth is None:
        raise ValueError(f"{prompt.id}: its questions are missing (the folder of *_eval_prompts.jsonl)")

    def check(text: str) -> None:
        tiif.right(tiif.parse(text), truth)

    asks = [Ask("chat", "answers", tiif_question(prompt.metadata["questions"]), check)]
    return [*asks, Ask("ocr", "text", READ_TEXT)] if options.tiif_text and prompt.tag == "text" else asks


def _tiif_grade(prompt: BenchPrompt, answers: dict[str, Any], _: Options) -> Grade:
    given = tiif.parse(answers["answers"])
    right = tiif.right(given, prompt.metadata["answers"])
    rows = zip(prompt.metadata["questions"], given, right, strict=True)
    detail = "\n".join(f"{'✓' if good else '✗'} {question.strip()} {answer}" for question, answer, good in rows)
    read = answers.get("text")
    facts = None if read is None else tiif.text_match(tiif.wanted_texts(prompt.metadata["questions"]), [read])
    return Grade(sum(right) / len(right), tuple(right), detail, facts)


def _tiif_sum(graded: Sequence[Graded]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for length in tiif.LENGTHS:
        own = [one for one in graded if one.prompt.metadata["length"] == length]
        verdicts = [
            (one.prompt.tag, one.grade.right if one.grade else [False] * len(one.prompt.metadata["answers"]))
            for one in own
        ]
        shares = {name: one.share for name, one in tiif.accuracies(verdicts).items()}
        sums |= {f"{name} {length}": value for name, value in tiif.summarize(shares).items()}
        if matches := [one.grade.facts for one in own if one.grade and one.grade.facts is not None]:
            gned, recall = (float(mean) for mean in np.mean(matches, axis=0))
            sums |= {f"GNED {length}": gned, f"recall {length}": recall}
    return sums


# -------------------------------------------------------------------------------------------- GenAI-Bench


def _genai_asks(prompt: BenchPrompt, _: Options) -> list[Ask]:
    return [Ask("yes", "vqascore", genai_bench.QUESTION.format(prompt=prompt.text))]


def _genai_grade(_: BenchPrompt, answers: dict[str, Any], __: Options) -> Grade:
    score = float(answers["vqascore"])
    if not 0 <= score <= 1:
        raise ValueError(f"a VQAScore is 0 to 1, got {score}")
    return Grade(score, (score > 0.5,), f"VQAScore {score:.3f}")


def _genai_sum(graded: Sequence[Graded]) -> dict[str, float]:
    return genai_bench.summarize(
        (one.prompt.metadata["skills"], one.grade.score if one.grade else 0.0) for one in graded
    )


# -------------------------------------------------------------------------------------------------- OneIG


def _oneig_asks(prompt: BenchPrompt, _: Options) -> list[Ask]:
    asks = [Ask("diversity", "diversity")]
    if prompt.tag in oneig.ALIGNED:
        questions = prompt.metadata.get("questions", {})
        asks += [Ask("chat", number, ONEIG_ALIGNMENT.format(question=text)) for number, text in questions.items()]
    if prompt.tag == "text":
        asks.append(Ask("ocr", "text", READ_TEXT))
    if prompt.tag == "reasoning":
        asks.append(Ask("reasoning", "reasoning", prompt.metadata.get("answer", "")))
    if "style" in prompt.metadata:
        asks.append(Ask("style", "style", prompt.metadata["style"]))
    return asks


def _oneig_grade(prompt: BenchPrompt, answers: dict[str, Any], _: Options) -> Grade:
    """One image; what could not be asked (no judge for it) is left out."""
    facts: dict[str, Any] = {
        name: float(answers[name]) for name in ("reasoning", "style", "diversity") if name in answers
    }
    right: tuple[bool, ...] = ()
    lines = [f"{name} {value:.3f}" for name, value in facts.items()]
    questions = prompt.metadata.get("questions", {})
    if questions and all(number in answers for number in questions):
        given = {number: str(answers[number]) for number in questions}
        facts["alignment"], (fulfilled,) = oneig.alignment([given], prompt.metadata["dependency"])
        right = tuple(fulfilled)
        rows = zip(questions.items(), fulfilled, strict=True)
        lines += [f"{'✓' if good else '✗'} {question} {given[number]}" for (number, question), good in rows]
    if "text" in answers:
        facts["text"] = oneig.text_match(prompt.metadata["text_content"], str(answers["text"]))
        right = (facts["text"].right,)
        lines.append(f"edit distance {facts['text'].distance}; read: {answers['text']}")
    if not facts:
        raise ValueError("nothing was judged")
    share = facts.get("alignment", facts.get("reasoning", facts.get("style")))
    text = facts.get("text")
    score = share if share is not None else text.matched / text.words if text is not None and text.words else 0.0
    return Grade(score, right, "\n".join(lines), facts)


def _oneig_sum(graded: Sequence[Graded]) -> dict[str, float]:
    found: dict[str, dict[str, list[float]]] = {}
    matches = []
    judged = {name for one in graded if one.grade for name in one.grade.facts}
    for one in graded:
        facts = one.grade.facts if one.grade else _oneig_missing(one.prompt)
        for name in judged & set(facts):
            if name == "text":
                matches.append(facts[name])
            else:
                found.setdefault(name, {}).setdefault(one.prompt.id, []).append(facts[name])
    sums = {name: oneig.prompt_mean(prompts.values()) for name, prompts in found.items()}
    if text := oneig.summarize_text(matches):
        sums |= {"text": text.pop("score")} | text
    overall = oneig.overall(sums)
    ordered = {name: sums[name] for name in (*oneig.DIMENSIONS, "ED", "CR", "WAC") if name in sums}
    return ordered if overall is None else ordered | {"overall": overall}


def _oneig_missing(prompt: BenchPrompt) -> dict[str, Any]:
    """A missing image: nothing that was asked is there, and no text can be read."""
    if prompt.tag == "text":
        return {"text": oneig.text_match(prompt.metadata["text_content"], "")}
    if prompt.tag == "reasoning":
        return {"reasoning": 0.0}
    return {"alignment": 0.0} | ({"style": 0.0} if "style" in prompt.metadata else {})


BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (
        Benchmark(
            "geneval",
            (*geneval.TAGS, "overall"),
            lambda *_: [Ask("detect", "objects")],
            _geneval_grade,
            _geneval_sum,
        ),
        Benchmark("wise", (*wise.CATEGORIES, "overall", "overall_plain"), _wise_asks, _wise_grade, _wise_sum),
        Benchmark(
            "tiif",
            tuple(
                f"{name} {length}"
                for name in ("Overall", "Basic/Avg", "Advanced/Avg", *tiif.GROUPS, "GNED", "recall")
                for length in tiif.LENGTHS
            ),
            _tiif_asks,
            _tiif_grade,
            _tiif_sum,
            "question",
        ),
        Benchmark("genai_bench", ("basic", "advanced", "all"), _genai_asks, _genai_grade, _genai_sum),
        Benchmark(
            "oneig",
            (*oneig.DIMENSIONS, "overall"),
            _oneig_asks,
            _oneig_grade,
            _oneig_sum,
            "question or text",
        ),
    )
}
