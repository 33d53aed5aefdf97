"""The cache: prefixes of rows, shared until they part."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from irg.engine.cache import Context, KVCache
from irg.model.network.config import tiny
from irg.model.placement.kv_cache_size import RowKind

CONFIG = tiny().decoder


def cache_of(rows: int = 2, slots: int = 8) -> KVCache:
    return KVCache(CONFIG, rows, slots)


def write(cache: KVCache, context: Context, marks: list[int]) -> None:
    """Store a token per mark behind a reserved context: the mark in its keys, its negative in its values."""
    assert context.row is not None
    slots = cache.slots_of(context.row).start + context.length + torch.arange(len(marks))
    shape = (len(marks), CONFIG.num_key_value_heads, CONFIG.head_dim)
    marked = torch.tensor(marks, dtype=torch.float32)[:, None, None].expand(shape)
    for layer in range(CONFIG.num_hidden_layers):
        cache.write(layer, slots, marked + 1000 * layer, -marked)
    cache.commit(context, len(marks), positions=2 * len(marks))


def append(cache: KVCache, context: Context, marks: list[int]) -> None:
    cache.reserve([(context, len(marks))])
    write(cache, context, marks)


def held(cache: KVCache, context: Context) -> list[int]:
    """Marks of a context's tokens; keys and values of all layers and heads agree on them."""
    slots = slice(0) if context.row is None else cache.slots_of(context.row, context.length)
    marks = cache.keys_SKE[0][slots, 0, 0]
    for layer in range(CONFIG.num_hidden_layers):
        keys, values = (slabs[layer][slots] for slabs in (cache.keys_SKE, cache.values_SKE))
        assert torch.equal(keys, (marks + 1000 * layer)[:, None, None].expand(keys.shape))
        assert torch.equal(values, -marks[:, None, None].expand(values.shape))
    return [int(mark) for mark in marks]


def test_append() -> None:
    cache = cache_of()
    context = cache.new()
    append(cache, context, [1, 2])
    append(cache, context, [3])
    assert held(cache, context) == [1, 2, 3]
    assert (context.length, context.position, context.row.filled, cache.rows_in_use) == (3, 6, 3, 1)


def test_a_fork_shares_the_row() -> None:
    cache = cache_of()
    context = cache.new()
    append(cache, context, [1, 2, 3])
    before = [slab.clone() for slab in cache.keys_SKE]
    whole, part = cache.fork(context), cache.fork(context, length=2, position=7)
    assert whole.row == part.row == context.row
    assert (whole.length, whole.position, part.length, part.position) == (3, 6, 2, 7)
    assert cache.rows_in_use == 1
    assert all(torch.equal(a, b) for a, b in zip(before, cache.keys_SKE, strict=True))
    assert held(cache, part) == [1, 2]


def test_who_goes_on_first_stays_and_the_other_moves() -> None:
    cache = cache_of()
    parent = cache.new()
    append(cache, parent, [1, 2])
    fork = cache.fork(parent)
    append(cache, fork, [3])
    assert (fork.row, cache.rows_in_use) == (parent.row, 1)
    append(cache, parent, [4])
    assert fork.row != parent.row
    assert (held(cache, parent), held(cache, fork), cache.rows_in_use) == ([1, 2, 4], [1, 2, 3], 2)


def test_two_forks_may_go_on_at_once() -> None:
    """Both are reserved before either is written, as in one forward."""
    cache = cache_of(rows=1)
    parent = cache.new()
    append(cache, parent, [1, 2])
    forks = [cache.fork(parent) for _ in range(3)]
    cache.reserve([(fork, 1) for fork in forks])
    for mark, fork in enumerate(forks):
        write(cache, fork, [10 + mark])
    assert [held(cache, c) for c in (parent, *forks)] == [[1, 2], [1, 2, 10], [1, 2, 11], [1, 2, 12]]
    assert cache.rows_in_use == 3


def test_the_last_one_on_a_row_need_not_move() -> None:
    cache = cache_of()
    parent = cache.new()
    append(cache, parent, [1, 2, 3])
    fork = cache.fork(parent, length=1, position=1)
    row = parent.row
    cache.free(parent)
    append(cache, fork, [9])
    assert (fork.row, held(cache, fork), cache.rows_in_use) == (row, [1, 9], 1)


def test_rows_are_used_again() -> None:
    cache = cache_of(rows=2)
    first, second = cache.new(), cache.new()
    append(cache, first, [1, 2, 3])
    row = first.row
    assert row is not None
    cache.free(first)
    third = cache.new()
    append(cache, third, [4])
    append(cache, second, [5])
    assert (third.row, held(cache, third), row.filled, cache.shape[0][0]) == (row, [4], 1, 2)
    assert second.row != row


def test_a_row_stays_while_a_fork_holds_it() -> None:
    cache = cache_of(rows=2)
    context = cache.new()
    append(cache, context, [1])
    fork = cache.fork(context)
    cache.free(context)
    other = cache.new()
    append(cache, other, [2])
    assert other.row != fork.row
    assert held(cache, fork) == [1]


def test_growing_keeps_what_is_there() -> None:
    cache = cache_of(rows=1, slots=2)
    first = cache.new()
    append(cache, first, [1, 2])
    append(cache, first, [3])
    assert cache.shape[0] == (1, 4)
    second = cache.new()
    assert cache.shape[0] == (1, 4)
    append(cache, second, list(range(20, 33)))
    assert cache.shape[0] == (2, 13)
    assert (held(cache, first), held(cache, second)) == ([1, 2, 3], list(range(20, 33)))


def test_freeing_twice_is_a_bug() -> None:
    cache = cache_of()
    context = cache.new()
    append(cache, context, [1])
    cache.free(context)
    with pytest.raises(AssertionError, match="freed twice"):
        cache.free(context)


def test_appending_without_reserving_is_a_bug() -> None:
    cache = cache_of()
    context = cache.new()
    append(cache, context, [1])
    with pytest.raises(AssertionError, match="not reserved"):
        write(cache, context, [2])


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_contexts_are_lists(data: st.DataObject) -> None:
    """Whatever is done, every context holds what a list of its own would hold, and no row is lost."""
    cache = cache_of(rows=1, slots=2)
    lists: dict[int, list[int]] = {}
    contexts: dict[int, Context] = {}
    names, marks = iter(range(1000)), iter(range(1, 10_000))

    def some(least: int = 1, most: int = 1) -> list[int]:
        keys = st.sampled_from(sorted(contexts))
        return data.draw(st.lists(keys, min_size=least, max_size=most, unique=True))

    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["new", "fork", "append", "append", "free"])) if contexts else "new"
        if action == "new":
            name = next(names)
            contexts[name], lists[name] = cache.new(), []
        elif action == "fork":
            (source,), name = some(), next(names)
            length = data.draw(st.integers(0, len(lists[source])))
            kind = data.draw(st.sampled_from(RowKind))
            contexts[name] = cache.fork(contexts[source], length, 2 * length, kind)
            lists[name] = lists[source][:length]
        elif action == "append":
            chosen = {name: [next(marks) for _ in range(data.draw(st.integers(1, 3)))] for name in some(1, 4)}
            cache.reserve([(contexts[name], len(new)) for name, new in chosen.items()])
            for name, new in chosen.items():
                write(cache, contexts[name], new)
                lists[name] += new
        else:
            (name,) = some()
            cache.free(contexts.pop(name))
            del lists[name]
        assert {name: held(cache, context) for name, context in contexts.items()} == lists
        assert all(context.position == 2 * context.length for context in contexts.values())
        assert cache.rows_in_use == len({context.row for context in contexts.values() if context.length})


# ------------------------------------------------------------------------------------------------------------- growth


def test_what_is_expected_is_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of every kind, each as long as was told."""
    cache, made, slab = KVCache(CONFIG), list[int](), KVCache._slab

    def counted(self: KVCache, slots: int, device: torch.device) -> Any:
        made.append(slots)
        return slab(self, slots, device)

    monkeypatch.setattr(KVCache, "_slab", counted)
    cache.expect([(2, 20), (1, 15), (1, 6)])
    contexts = [cache.new(), cache.new()]
    for mark in range(20):
        append(cache, contexts[mark % 2], [mark])
    for kind, own in ((RowKind.TEXT_FREE, 10), (RowKind.IMAGE_FREE, 1)):
        contexts.append(cache.fork(contexts[0], 5, 10, kind))
        append(cache, contexts[-1], [90] * own)
    assert [context.row.kind for context in contexts if context.row] == [0, 0, 1, 2]
    assert made == [2 * 20 + 15 + 6] * 2 * CONFIG.num_hidden_layers
    lists = [held(cache, context) for context in contexts]
    append(cache, contexts[3], [91])  # more than was told
    assert cache.shape == ((2, 20), (1, 15), (1, 12))
    assert [held(cache, context) for context in contexts] == [*lists[:3], [*lists[3], 91]]


def test_what_is_expected_need_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, slab = KVCache(CONFIG), KVCache._slab

    def small(self: KVCache, slots: int, device: torch.device) -> Any:
        if slots > 100:
            raise torch.OutOfMemoryError("made up")
        return slab(self, slots, device)

    monkeypatch.setattr(KVCache, "_slab", small)
    cache.expect([(3, 1000), (1, 10), (0, 0)])
    context = cache.new()
    append(cache, context, [1, 2])
    assert (cache.shape, held(cache, context)) == (((1, 2), (0, 0), (0, 0)), [1, 2])


def test_rows_grow_by_what_is_needed_and_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(rows=1, slots=4)
    first = cache.new()
    append(cache, first, [1])
    resized, resize = list[Any](), cache._resize

    def counted(shape: Any) -> None:
        resized.append(shape)
        resize(shape)

    monkeypatch.setattr(cache, "_resize", counted)
    fork, others = cache.fork(first), [cache.new() for _ in range(3)]
    cache.reserve([(first, 1), (fork, 1), *((other, 7) for other in others)])
    assert resized == [[(5, 8), (0, 0), (0, 0)]]


def test_when_growth_fails_nothing_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In any slab: sizes, contexts and what they hold are as before, and the next growth works."""
    for failing in range(2 * CONFIG.num_hidden_layers):
        cache = cache_of(rows=1, slots=4)
        context = cache.new()
        append(cache, context, [1, 2])
        fork, made, slab = cache.fork(context), 0, cache._slab

        def faulty(*size: Any, slab: Any = slab, failing: int = failing) -> Any:
            nonlocal made
            made += 1
            if made == failing + 1:
                raise torch.OutOfMemoryError("made up")
            return slab(*size)

        with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
            patch.setattr(cache, "_slab", faulty)
            cache.reserve([(context, 1), (fork, 9)])
        assert {len(slab) for slab in (*cache.keys_SKE, *cache.values_SKE)} == {4}
        assert (held(cache, context), held(cache, fork), context.row.filled) == ([1, 2], [1, 2], 2)
        append(cache, context, [3])
        append(cache, fork, [4])
        assert (held(cache, context), held(cache, fork), len(cache._kinds[0].rows)) == ([1, 2, 3], [1, 2, 4], 2)
