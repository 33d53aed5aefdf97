"""What the paper reports (arXiv 2509.06945), beside which our scores are shown; each row names its judge."""

from dataclasses import dataclass

IRG, BAGEL, COT, GPT = "IRG (paper)", "BAGEL (paper)", "BAGEL self-CoT (paper)", "GPT-4o (paper)"

_JUDGES = {"geneval": "mmdet", "wise": "gpt-4o", "tiif": "qwen2.5-vl-72b", "genai_bench": "clip-flant5-xxl"}
"""Part of the name of the judge that scored the paper's images; OneIG's numbers are of several judges."""


def is_papers_judge(benchmark: str, judge: str) -> bool:
    """Whether a judge's scores may stand in one table with the paper's: it is the same judge, by its name."""
    name = _JUDGES.get(benchmark)
    return name is not None and name in judge.lower()


@dataclass(frozen=True)
class Reported:
    """One row: the numbers by column of our tables, on the benchmark's own scale 0..1."""

    model: str
    scores: dict[str, float]
    judge: str
    prompts: str


def _row(model: str, columns: tuple[str, ...], values: tuple[float, ...], judge: str, prompts: str) -> Reported:
    return Reported(model, dict(zip(columns, values, strict=True)), judge, prompts)


_GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr", "overall")
_GENEVAL_BY = ("GenEval's Mask2Former (mmdet)", "as in the paper")
_WISE = ("culture", "time", "space", "biology", "physics", "chemistry", "overall")
_WISE_BY = ("GPT-4o class", "legacy")
_TIIF = ("Overall short", "Overall long")
_TIIF_BY = ("Qwen2.5-VL-72B", "testmini")
_GENAI_BY = ("CLIP-FlanT5-XXL", "1600")
_ONEIG = ("alignment", "text", "reasoning", "style", "diversity", "overall")
_ONEIG_BY = ("OneIG's own judges", "en")

REPORTED: dict[str, tuple[Reported, ...]] = {
    "geneval": (
        _row(GPT, ("overall",), (0.84,), *_GENEVAL_BY),
        _row(BAGEL, _GENEVAL, (0.99, 0.95, 0.76, 0.87, 0.50, 0.60, 0.78), *_GENEVAL_BY),
        _row(COT, _GENEVAL, (0.99, 0.92, 0.75, 0.89, 0.54, 0.63, 0.79), *_GENEVAL_BY),
        _row(IRG, _GENEVAL, (0.98, 0.94, 0.83, 0.86, 0.74, 0.73, 0.85), *_GENEVAL_BY),
    ),
    "wise": (
        _row(GPT, ("overall",), (0.80,), *_WISE_BY),
        _row(BAGEL, ("overall",), (0.52,), *_WISE_BY),
        _row(COT, ("overall",), (0.70,), *_WISE_BY),
        _row(IRG, _WISE, (0.78, 0.72, 0.76, 0.81, 0.82, 0.78, 0.77), *_WISE_BY),
    ),
    "tiif": (
        _row(BAGEL, _TIIF, (0.7097, 0.7179), *_TIIF_BY),
        _row(COT, _TIIF, (0.6806, 0.6878), *_TIIF_BY),
        _row(IRG, _TIIF, (0.7600, 0.7377), *_TIIF_BY),
    ),
    "genai_bench": (
        _row(BAGEL, ("all",), (0.79,), *_GENAI_BY),
        _row(COT, ("all",), (0.81,), *_GENAI_BY),
        _row(IRG, ("all",), (0.84,), *_GENAI_BY),
    ),
    "oneig": (
        _row(BAGEL, ("overall",), (0.361,), *_ONEIG_BY),
        _row(COT, ("overall",), (0.324,), *_ONEIG_BY),
        _row(IRG, _ONEIG, (0.839, 0.377, 0.239, 0.427, 0.192, 0.415), *_ONEIG_BY),
    ),
}
