"""How understanding is measured: which words count, and as what."""

import torch
from PIL import Image

from irg.engine.engine import Engine
from irg.engine.ops import Look, Say
from irg.reasoning.pipeline import IRGPipeline
from irg_mini.measure.understanding import Understanding, cases, kinds_of, measure, table


def test_kinds() -> None:
    text = "Scene : night . Things : large red apple at (3,7) ; small bus at (10,0) ."
    words = text.split()
    found = dict(zip(words, kinds_of(words), strict=True))
    assert [word for word, kind in found.items() if kind == "place"] == ["(3,7)", "(10,0)"]
    assert found["night"] == "background" and found["large"] == found["small"] == "size"
    assert {found[word] for word in ("Scene", "red", "apple", "bus", ";", ".")} == {"other words"}


def test_the_cases_differ_in_what_is_seen() -> None:
    pipe = IRGPipeline.from_pretrained("mini")
    found = list(cases(Understanding(images=1, sprites="builtin"), pipe))
    assert len(found) == 8 and len({case.row for case in found}) == 8
    looks = [[op for op in case.ops if isinstance(op, Look)] for case in found]
    assert [(ops[0].vae, ops[0].vit) if ops else None for ops in looks] == [
        *[(True, True), (False, True), (True, False), None],
        *[(True, True), (False, True), (True, False), (True, True)],
    ]
    for case in found[:4]:
        assert case.text.startswith("Scene: ") and case.counted == len(case.text)
    for case in found[4:]:
        assert case.text[: case.counted].startswith("<think> Analysis: in the picture: ")
    assert found[7].ops[2] == Say(found[0].text)


def test_a_given_text_is_scored_as_it_is_written() -> None:
    pipe = IRGPipeline.from_pretrained("mini")
    engine: Engine = pipe.engine
    ids = engine.scheduler.prefiller.ids("Scene: night")
    ops = (Say("a cat"), Look(Image.new("RGB", (128, 128), (9, 90, 200)), vae=False))
    scored = engine.score(ops, ids)
    context = engine.runner.cache.new()
    for op in ops:
        engine.runner.extend([(context, engine.scheduler.prefiller.parts_of(op, torch.Generator()))])
    one_by_one = [engine.runner.feed([context], [[token]])[0, 0] for token in (engine.runner.grammar.special.bos, *ids)]
    assert torch.allclose(scored, torch.stack(one_by_one), atol=1e-4)
    assert engine.runner.cache.rows_in_use == 1


def test_the_table_has_every_row() -> None:
    """The bundled model tells a background from its latents, and not without an image."""
    results = measure(Understanding(images=6, sprites="builtin"))
    lines = table(results).splitlines()
    assert len(lines) == 2 + 8 and lines[0] == "| | background | size | place | other words |"
    assert results["plan, encoders: both"]["background"][0] < 0.5 < results["plan, encoders: none"]["background"][0]
    assert results["plan, encoders: both"]["background"][2] == 6 and "background" not in results["seen, encoders: both"]
