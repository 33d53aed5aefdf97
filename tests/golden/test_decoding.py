"""Case e: greedy decoding."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from irg.engine.engine import Engine
from irg.engine.ops import Forget, Look, Program, Say, Write, Written
from irg.engine.runner import Runner
from irg.model.weights.checkpoint import LoadedModel

from . import fixture
from .fixture import Case, close, equal, read_image, sub_cases
from .runs import check_contexts, held, ids_in, restore


@pytest.fixture
def runner(loaded: LoadedModel) -> Runner:
    return Runner(loaded.model, loaded.autoencoder, rows=1, slots=16)


def final(e: Case, name: str) -> fixture.Context:
    """The contexts after a run: every token that was fed is in them."""
    steps = len(e[f"{name}.ids"])
    lens = [n + steps for n in e.integers(f"{name}.in.key_values_lens")]
    return fixture.Context(e[f"{name}.k"], e[f"{name}.v"], lens, e.integers(f"{name}.final_rope"))


def test_token_by_token(case: Callable[[str], Case], runner: Runner) -> None:
    """The recorded contexts, then one token at a time, all samples of a batch together."""
    e = case("e_generate_text")
    for name in sub_cases(e, "ids"):
        ids, end = e[f"{name}.ids"], final(e, name)
        lens, positions = (e.integers(f"{name}.in.{n}") for n in ("key_values_lens", "packed_query_position_ids"))
        contexts = [
            restore(runner, *(kv[:, :n] for kv in end.of(i)), position)
            for i, (n, position) in enumerate(zip(lens, positions, strict=True))
        ]
        tokens = [runner.grammar.special.bos] * len(contexts)
        for step, wanted in enumerate(e[f"{name}.logits"]):
            equal(tokens, ids[step], f"{name}: tokens fed at step {step}")
            logits = runner.feed(contexts, [[token] for token in tokens])[:, 0]
            close(logits, wanted, f"{name}.logits, step {step}")
            tokens = logits.argmax(dim=-1).tolist()
        check_contexts(runner, contexts, end, name)
        for context in contexts:
            runner.cache.free(context)


def test_engine_writes_the_same(case: Callable[[str], Case], runner: Runner) -> None:
    """The whole way of the runs whose context is told in words: text, image, text, then a text written."""
    e = case("e_generate_text")
    told = next(name for name in sub_cases(e, "ctx.k") if f"{name}.image_u8" in e)
    texts, image = ids_in(e.what(f"{told}.ctx.k")), read_image(e, f"{told}.image_u8")
    lens = e.integers(f"{told}.in.key_values_lens")
    runs = [n for n in sub_cases(e, "ids") if torch.equal(e[f"{n}.k"][:, : lens[0]], e[f"{told}.ctx.k"])]
    assert told in runs
    grammar = runner.grammar
    for name in runs:
        wanted, values = e[f"{name}.ids"].flatten().tolist(), e.values
        ends_with = values[f"{name}.end_token_id"]
        engine = Engine(runner)

        def program(engine: Engine = engine, name: str = name, ends_with: int = ends_with) -> Program:
            yield Say(texts[0])
            yield Look(image, vae=False)
            for ids in texts[1:]:
                said = yield Say(ids)
            yield Write(0)  # parts are computed when they are needed
            yield Forget(said.handles)
            main = engine.scheduler.running[0].main
            check_contexts(runner, [main], e.context(f"{told}.ctx"), f"{told}.ctx")
            # a run may end with another token than eos
            runner.grammar = replace(grammar, special=replace(grammar.special, eos=ends_with))
            written = yield Write(e.values[f"{name}.max_length"] - 1, temperature=0.0)
            keys, cached_values = (kv[:, :-1] for kv in held(runner, main))  # without the closing token
            close(keys, e[f"{name}.k"], f"{name}.k")
            close(cached_values, e[f"{name}.v"], f"{name}.v")
            runner.grammar = grammar
            return written

        written: Written
        (written,) = engine.run([(program(), 0)])
        assert [grammar.special.bos, *written.ids] == wanted, name
        assert written.complete == (int(e[f"{name}.logits"][-1].argmax()) == ends_with), name
        assert runner.cache.rows_in_use == 0
