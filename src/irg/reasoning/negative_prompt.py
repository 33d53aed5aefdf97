"""Negative prompts, for any program."""

from dataclasses import replace

from irg.engine.ops import Draw, Forget, Operation, Program, Said, Say


def with_negative_prompt(program: Program, text: str) -> Program:
    """``program``, with ``text`` in the unconditional text branch of every image.

    There it stands in the place of what that branch leaves out, at the end of the sequence. No other branch and no text
    that the model writes sees it. An empty text changes nothing.
    """
    return _with_text(program, text) if text else program


def _with_text(program: Program, text: str) -> Program:
    result, error = None, None
    try:
        while True:
            try:
                op: Operation = program.send(result) if error is None else program.throw(error)
            except StopIteration as stop:
                return stop.value
            result, error = None, None
            try:
                if isinstance(op, Draw):
                    result = yield from _drawn(op, text)
                else:
                    result = yield op
            except Exception as raised:  # of a Wait: the program may catch it
                error = raised
    finally:
        program.close()


def _drawn(op: Draw, text: str) -> Program:
    said: Said = yield Say(text)
    result = yield replace(op, drop=op.drop + said.handles, drop_image=op.drop_image + said.handles)
    first = said.handles[0]
    yield Forget((first - 1,) if first else ())
    return result
