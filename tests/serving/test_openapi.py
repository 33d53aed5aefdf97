"""Random requests made from the server's own OpenAPI document: every answer is a documented one, none is a crash."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from irg.reasoning.pipeline import IRGPipeline
from irg.serving.options import Limits, ServerOptions
from serving import Running, serving

WANTED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def small(tiny_pipe: IRGPipeline, options: ServerOptions) -> Iterator[Running]:
    limits = Limits(max_steps=4, max_rounds=1, max_tokens=8, max_images=1, max_pixels=64 * 64, timeout_s=20)
    with serving(tiny_pipe, replace(options, critics=(), limits=limits)) as running:
        yield running


CALM = settings(max_examples=6, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_a_documented_one(small: Running, mode: GenerationMode) -> None:
    document = schemathesis.openapi.from_url(f"{small.url}/openapi.json")
    checks = [CHECKS.get_one(name) for name in WANTED]
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) == 10
    for operation in operations:

        @CALM
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case: Any) -> None:
            case.call_and_validate(checks=checks, timeout=60)

        try:
            answered()
        except Unsatisfiable:  # nothing can be wrong with a request without fields
            assert mode is GenerationMode.NEGATIVE


def test_unknown_fields_are_refused_wherever_there_are_fields(small: Running) -> None:
    document = small.call("/openapi.json").json
    bodies = [way["post"] for way in document["paths"].values() if "post" in way]
    assert len(bodies) == 4
    for name, one in document["components"]["schemas"].items():
        if name.endswith(("Request", "Message", "Part", "Tool")) and name != "AnswerMessage":
            assert one["additionalProperties"] is False, name
