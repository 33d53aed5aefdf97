"""``irg bench score NAME --images DIR --judge J`` and ``irg bench table RUN...``."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from tyro.conf import Positional, arg
from tyro.constructors import PrimitiveConstructorSpec

from irg import files, promptsets
from irg.cli.arguments import parse
from irg.deprecation import renamed
from irg.endpoints import json_object
from irg.evaluation.judges import JudgeOptions
from irg.text_files import read_text

_JSON = PrimitiveConstructorSpec(
    nargs=1,
    metavar="JSON",
    instance_from_str=lambda words: json_object("--extra", words[0]),
    is_instance=lambda value: isinstance(value, Mapping),
    str_from_instance=lambda value: [json.dumps(dict(value))],
)


@dataclass(frozen=True)
class ScoreOptions(JudgeOptions):
    """What is scored, by whom."""

    name: Positional[Annotated[str, arg(metavar="NAME")]] = ""
    """geneval, wise, tiif, genai-bench or oneig."""
    images: str = ""
    """A run's folder, or any folder of images in the benchmark's official layout."""
    judge: tuple[str, ...] = ()
    """One or several of: mini, geneval[:FOLDER], openai:MODEL, hf:MODEL, vqascore:MODEL, ocr, file:PATH."""
    out: str | None = None
    """Where scores go (default: scores/ in the run; for other folders DIR-scores)."""
    turns: Literal["ends", "last", "all"] = "all"
    """Which images of a run: those of all edit budgets, the first and the last, or the last only."""
    official_skips: bool = False
    """Leave out missing images, as the official scripts do, instead of counting them as wrong."""
    parse_answers: Literal["tolerant", "strict"] = "tolerant"
    """For WISE: strict reads an answer as the official script does."""
    counting_above: float = 0.9
    """For GenEval's counting: scores must be above this; 0.9 is official."""
    rubric: str | None = None
    """For WISE: a file with another judging instruction; {prompt} and {explanation} are filled in."""
    text_extra: bool = False
    """For TIIF: also read the text in images of text, for GNED and recall; needs a judge such as ocr."""
    retry_failed: bool = False
    """Ask refused and unusable answers again too (outages always are)."""
    prompts: str | None = None
    """Prompts that are here already: a file, or a folder laid out like the official one."""
    variant: str | None = None
    """For folders that are no run: which prompt set they were drawn from (default: the usual one)."""
    model_name: str | None = None
    """For folders that are no run: the model's name in the layout (TIIF, OneIG) and in tables."""
    num_images: Annotated[int | None, arg(aliases=["-n"])] = renamed(was="samples", default=None)
    """For folders that are no run: how many images there are of a prompt (default: the protocol's)."""
    offline: bool = False
    """Fetch nothing."""
    extra: Annotated[Mapping[str, Any], _JSON] = field(default_factory=dict)
    """For endpoints: further fields of a request's body; null leaves out one that is sent otherwise, such as
    '{"temperature": null, "max_tokens": null, "max_completion_tokens": 4096}'."""


def main(argv: Sequence[str]) -> int:
    """Score images, print the table.

    Raises:
        ValueError: an argument, the prompts, the images or a judge is not acceptable.
    """
    what = "Judge a benchmark's images. Raw answers are kept: nothing is judged twice, and a score can be recomputed."
    options = parse(ScoreOptions, argv, "irg bench score", what)
    if not options.name or not options.images:
        raise ValueError("give the benchmark and its images: irg bench score geneval --images DIR --judge mini")
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)

    from irg.evaluation.judges import make_judges
    from irg.evaluation.scoring import ScoreRequest, score

    judging = JudgeOptions(**{field.name: getattr(options, field.name) for field in fields(JudgeOptions)})
    request = ScoreRequest(
        benchmark=promptsets.canonical_name(options.name),
        images=Path(options.images).expanduser(),
        out=Path(options.out).expanduser() if options.out else None,
        turns=options.turns,
        official_skips=options.official_skips,
        wise_parse=options.parse_answers,
        counting_above=options.counting_above,
        rubric=_text(options.rubric),
        retry_failed=options.retry_failed,
        prompts=options.prompts,
        variant=options.variant,
        model_name=options.model_name,
        samples=options.num_images,
        text_extra=options.text_extra,
        offline=options.offline,
    )
    request.check()
    try:
        folder, result = score(request, make_judges(options.judge, judging), console)
    except KeyboardInterrupt:
        console.print("Interrupted; all answers so far are kept. Run the same command to go on.")
        raise

    from irg.evaluation.table_formats import to_markdown
    from irg.evaluation.tables import tables

    own = [table for table in tables([result]) if not all(row.reported for row in table.rows)]
    print(to_markdown(own), end="")
    console.print(f"Written to {folder} (result.json, judgements.jsonl, report/index.html)")
    unjudged = sum(turn.unjudged for turn in result.turns)
    if unjudged:
        console.print(f"{unjudged} images have no grade: the numbers above are not whole; run the same command again")
    return 1 if unjudged else 0


def _text(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        text = read_text(path)
    except ValueError as error:
        raise ValueError(f"--rubric {path}: can't be read: {error}") from error
    if "{prompt}" not in text:
        raise ValueError(f"--rubric {path}: holds no {{prompt}}, so the judge would not know what to judge")
    return text


@dataclass(frozen=True)
class TableOptions:
    """Which scores, in which form."""

    runs: Positional[Annotated[tuple[str, ...], arg(metavar="RUN...")]] = ()
    """Runs that are scored, folders of scores, or result.json files."""
    format: Literal["markdown", "csv", "html"] = "markdown"
    out: str | None = None
    """Write to this file (default: print)."""
    no_reported: bool = renamed(was="no_paper", default=False)
    """Without what models' authors report."""


def table(argv: Sequence[str]) -> int:
    """Print scores side by side.

    Raises:
        ValueError: there is no score where one was named.
    """
    what = "Scores side by side; different judges or prompt sets never share a table."
    options = parse(TableOptions, argv, "irg bench table", what)
    if not options.runs:
        raise ValueError("name the runs: irg bench table irg-bench/geneval-mini-irg irg-bench/geneval-mini-think")
    from irg.evaluation import table_formats
    from irg.evaluation.results import Result
    from irg.evaluation.tables import tables

    results = [Result.load(Path(run).expanduser()) for run in options.runs]
    formats = {"markdown": table_formats.to_markdown, "csv": table_formats.to_csv, "html": table_formats.to_html}
    text = formats[options.format](tables(results, with_reported=not options.no_reported))
    if options.out:
        files.write_text(Path(options.out), text)
        print(options.out)
    else:
        print(text, end="")
    return 0
