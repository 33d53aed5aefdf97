"""What requests may hold: OpenAI's fields, every setting of the pipeline under its own name, and other servers' names.

A field that is not here is refused by name. The settings are those of ``Settings`` and ``DrawSettings``; nothing is
listed twice.
"""

import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from irg.engine.settings import DrawSettings
from irg.reasoning.effort import Effort
from irg.reasoning.settings import IMPROVE, MAX_SEED, Settings
from irg.serving.errors import of_validation
from irg.serving.image_data import OutputFormat

Quality = Literal["auto", "low", "medium", "standard", "high", "hd", "xhigh", "max"]


class Strict(BaseModel):
    """Nothing unknown, nothing converted (but for forms, whose values are all text)."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def _settings() -> dict[str, Any]:
    """An optional field for each setting of a request."""
    made: dict[str, Any] = {}
    for owner, start in ((Settings, ""), (DrawSettings, ""), (DrawSettings, IMPROVE)):
        for name, kind in typing.get_type_hints(owner).items():
            if typing.get_origin(kind) is tuple:
                kind = Annotated[list[float], Field(min_length=2, max_length=2)]
            if kind is not DrawSettings:
                made[start + name] = (kind | None, None)
    return made


SETTINGS = tuple(_settings())
_SettingFields = create_model("_SettingFields", __base__=Strict, **_settings())
ALIASES = {
    "guidance_scale": "cfg_text_scale",
    "true_cfg_scale": "cfg_text_scale",
    "flow_shift": "timestep_shift",
    "think_temperature": "temperature",
}
"""Names that other servers have for our settings, where the value means the same."""


class Generation(_SettingFields):  # type: ignore[misc, valid-type]
    """What every endpoint takes to say how to reason and draw.

    Beside the settings themselves these are names of vLLM-Omni, SGLang and diffusers.
    """

    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    effort: Effort | None = Field(None, description="presets of drawing settings that are not given")
    num_inference_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="updates of every image")
    guidance_scale: float | None = Field(None, description="cfg_text_scale")
    true_cfg_scale: float | None = Field(None, description="cfg_text_scale")
    flow_shift: float | None = Field(None, description="timestep_shift")
    think: bool | None = Field(None, description="true: mode think; false: mode direct")
    think_temperature: float | None = Field(None, description="temperature")
    think_do_sample: bool | None = Field(None, description="false: temperature 0")
    stream_thinking: bool = Field(False, description="stream thinking and reflections as events of their own")
    extra_body: dict[str, Any] | None = Field(None, description="further fields, for clients that nest them")


class ImageRequest(Generation):
    """``POST /v1/images/generations``."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    size: str | None = Field(None, description='"WIDTHxHEIGHT", a ratio such as "16:9", or "auto"')
    quality: Quality | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: OutputFormat | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(None, description="nothing is filtered")
    user: str | None = None
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="default: one for each round before the last"
    )


class EditRequest(ImageRequest):
    """``POST /v1/images/edits``, beside its images."""

    task: Literal["edit", "improve"] = Field(
        "edit", description="edit: the prompt is an instruction; improve: it says what the image should show"
    )


FieldsOf = type[ImageRequest] | type[EditRequest]


def from_form(kind: FieldsOf, values: Mapping[str, Any]) -> Any:
    """A request from a form's fields, whose values are text.

    Raises:
        ApiError: a field is unknown or its value not acceptable.
    """
    parsed = {name: _listed(value) if name.endswith("cfg_interval") else value for name, value in values.items()}
    try:
        return kind.model_validate(parsed, strict=False)
    except ValidationError as error:
        raise of_validation(error.errors(), list(kind.model_fields)) from None


def _listed(text: str) -> list[str]:
    """``0.4,1`` or ``[0.4, 1]``."""
    return [word.strip() for word in text.strip("[] ").split(",")]


def unnested(request: Any) -> Any:
    """A request with the fields of its ``extra_body`` among its own.

    Raises:
        ApiError: one of them is unknown, not acceptable, or given twice.
    """
    if not request.extra_body:
        return request
    own = request.model_dump(exclude_unset=True, exclude={"extra_body"})
    try:
        return type(request).model_validate(request.extra_body | own)
    except ValidationError as error:
        raise of_validation(error.errors(), list(type(request).model_fields)) from None
