"""``irg bench run NAME --model M``."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from rich.console import Console
from tyro.conf import Positional, Suppress, arg

from irg import promptsets
from irg.cli.arguments import ModelOptions, parse_with_settings
from irg.critics import CriticOptions
from irg.deprecation import renamed


@dataclass(frozen=True)
class RunOptions(ModelOptions):
    """Settings that are left out are the model's own."""

    name: Positional[Annotated[str, arg(metavar="NAME")]] = field(kw_only=True)
    """geneval, wise, tiif, genai-bench or oneig."""
    out: str | None = None
    """The run's folder (default: irg-bench/NAME-MODEL-MODE)."""
    resume: bool = False
    """Go on with the run in --out."""
    prompts: str | None = None
    """Prompts that are here already: a file, or a folder laid out like the official one."""
    variant: str | None = None
    """Another prompt set of the benchmark, such as rewritten (GenEval, WISE) or full (TIIF)."""
    limit: int | None = None
    """So many prompts only, evenly from all categories."""
    num_images: Annotated[int | None, arg(aliases=["-n"])] = renamed(was="samples", default=None)
    """Images a prompt (default: the protocol's: 4 for GenEval and OneIG, else 1)."""
    covered_by: str | None = None
    """Leave out prompts that this judge's vocabulary does not cover (default: mini for irg-mini); all: none."""
    seed: int = 0
    """Of the run; every image has its own seed, made of this, the prompt's id and its number."""
    batch_size: int | None = None
    """Images that are drawn together (default: 16, or as many as memory has room for)."""
    critic_options: Annotated[CriticOptions, Suppress] = field(default_factory=CriticOptions)


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Raises:
        ValueError: an argument, the prompts, the model or a setting is not acceptable.
        FileExistsError: the run's folder is taken.
    """
    what = "Draw a benchmark's prompts into a folder that irg bench score reads; can be interrupted, and resumed."
    options, changes = parse_with_settings(RunOptions, argv, "irg bench run", what)
    if options.batch_size is not None and options.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {options.batch_size}")
    loading = options.for_pipeline()
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    prompt_set = promptsets.load(
        options.name, options.prompts, variant=options.variant, offline=options.offline, say=console.print
    )

    from irg.evaluation import runs
    from irg.evaluation.generation import draw_missing
    from irg.evaluation.image_folders import slug
    from irg.reasoning.critique import Critics
    from irg.reasoning.pipeline import IRGPipeline
    from irg.reasoning.protocols.selection import find_model

    if options.out:
        runs.check_folder(Path(options.out), options.resume)
    critics = Critics(options.critic_options)
    critics.prepare(changes)  # a mistake about one is told before the model is loaded
    folder, loading["weights"] = find_model(
        options.model, options.weights, options.protocol, console.print, options.offline
    )
    covered_by, covered = _covered(options, folder, prompt_set)
    chosen = runs.select_prompts(covered, options.limit)
    if len(chosen) < len(prompt_set):
        console.print(f"{len(covered)} of {len(prompt_set)} prompts are covered, {len(chosen)} are drawn.")
    pipe = IRGPipeline.from_pretrained(**loading, say=console.print, options=changes, critics=critics)
    settings = pipe.defaults
    info = runs.new_run(
        prompt_set,
        chosen,
        options.num_images,
        covered_by=covered_by,
        covered=len(covered),
        model=str(options.model),
        model_fingerprint=pipe.loaded["fingerprint"],
        model_name=slug(str(options.model)),
        weights=pipe.loaded["weights"],
        lora=tuple(pipe.loaded["lora"]),
        protocol=pipe.protocol.name,
        protocol_reason=pipe.protocol_reason,
        system_prompt=loading["system_prompt"] or "",
        precision=pipe.loaded["precision"],
        mode=settings.mode,
        settings=settings.to_dict(),
        seed=options.seed,
    )
    out = Path(options.out) if options.out else runs.default_folder(prompt_set.name, options.model, settings.mode)
    runs.open_run(out, info, options.resume)
    for line in runs.changed_since(out, pipe.loaded):
        console.print(f"Earlier images of this run may differ in their last digits: {line}")
    try:
        drawn = draw_missing(out, info, chosen, pipe, options.batch_size or pipe.max_concurrent_requests(16), console)
    except KeyboardInterrupt:
        console.print(f"Interrupted; what is finished is in {out}. Go on with --resume.")
        raise
    finally:
        critics.close()
    missing = len(runs.missing_samples(out, info, chosen))
    console.print(f"{drawn} images drawn, {len(chosen) * info.samples - missing} are in {out}")
    print(out)
    if missing:
        console.print(f"irg bench run: error: {missing} images failed; --resume draws them again")
    return 2 if missing else 0


def _covered(
    options: RunOptions, folder: Path, prompt_set: promptsets.PromptSet
) -> tuple[str | None, tuple[promptsets.BenchPrompt, ...]]:
    """Which judge's vocabulary the prompts are chosen by, and the prompts that it covers."""
    from irg.model.weights.profile import read_profile

    name = options.covered_by
    if name is None:
        profile = read_profile(folder)
        name = "mini" if profile is not None and profile.name.startswith("irg-mini") else "all"
    if name == "all" or prompt_set.name != "geneval":
        return None, prompt_set.prompts
    from irg.evaluation.judges import JudgeOptions, make_judges

    (judge,) = make_judges([name], JudgeOptions())
    covered = tuple(prompt for prompt in prompt_set.prompts if judge.covers(prompt))
    if not covered:
        raise ValueError(f"none of the prompts is covered by the judge {name!r}")
    return judge.label, covered
