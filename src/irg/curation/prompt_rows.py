"""The prompts stage: rows with ids, from the sources of a recipe."""

from collections.abc import AsyncIterator

from irg.curation.content import content
from irg.curation.parts import Prompt
from irg.curation.recipe import DataRecipe
from irg.curation.resources import Resources
from irg.curation.stages import accepted
from irg.curation.store import Row, digest


def key(recipe: DataRecipe) -> str:
    """Eight digits of what decides the prompts.

    Raises:
        ValueError: a file is not there, or a quota can't be met.
    """
    settings = content(recipe.prompts) | {"sources": [source.content() for source in recipe.prompts.sources]}
    return digest("prompts", 2, recipe.seed, settings)[:8]


async def prompt_rows(recipe: DataRecipe, resources: Resources) -> AsyncIterator[Row]:
    """All rows of the prompts stage, in order; always the same for the same recipe.

    Raises:
        ValueError: a source cannot be read.
    """
    seen: set[bytes] = set()
    number = 0
    for source in recipe.prompts.sources:
        async for prompt in source.prompts(recipe.seed, resources):
            for sample in range(recipe.prompts.samples):
                number += 1
                row = _row(prompt, recipe, number if recipe.prompts.repeats else sample)
                name = bytes.fromhex(row["id"])
                if not recipe.prompts.repeats:
                    if name in seen:
                        continue  # the same prompt from two sources is one prompt
                    seen.add(name)
                yield row


def _row(prompt: Prompt, recipe: DataRecipe, sample: int) -> Row:
    turns = prompt.turns
    if turns is None:
        fraction = int(digest("turns", recipe.seed, prompt.prompt)[:8], 16) / 16**8
        turns = 1 if fraction < recipe.prompts.first_turns else 2
    name = digest("row", prompt.prompt, prompt.request, turns, sample, recipe.seed)
    row = {"id": name[:32]}
    return accepted(
        row,
        {"source": prompt.source},
        prompt=prompt.prompt,
        request=prompt.request,
        turns=turns,
        seed=int(name[32:40], 16) % 2**31,
        source=prompt.source,
        license=prompt.license,
    )
