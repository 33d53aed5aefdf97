"""One grammar: every command that makes images takes the same settings in the same spelling."""

from dataclasses import dataclass, field, fields
from importlib.metadata import EntryPoint
from typing import Annotated, Any, get_args

import pytest
import tyro

from irg import registry
from irg.cli import arguments
from irg.cli.arguments import parse_with_settings
from irg.cli.bench_run import RunOptions
from irg.cli.generate import GenerateOptions
from irg.critics import CriticOptions
from irg.engine.settings import DrawSettings
from irg.reasoning.settings import IMPROVE, Settings, with_options


@dataclass(frozen=True)
class Command:
    """A command with a field of its own."""

    out: str = "o"


def read(*words: str, **more: Any) -> dict[str, Any]:
    return parse_with_settings(Command, words, "irg x", "", **more)[1]


VALUES = {
    "mode": ("irg", "irg"),
    "rounds": ("2", 2),
    "height": ("64", 64),
    "width": ("48", 48),
    "temperature": ("0.5", 0.5),
    "reflect_temperature": ("0", 0.0),
    "max_think_tokens": ("9", 9),
    "max_reflect_tokens": ("8", 8),
    "top_k": ("50", 50),
    "top_p": ("0.9", 0.9),
    "look": ("vit", "vit"),
    "reflection_context": ("prompt", "prompt"),
    "candidates": ("4", 4),
    "select": ("self", "self"),
    "budget_seconds": ("2.5", 2.5),
    "budget_images": ("6", 6),
    "critic": ("self", "self"),
    "critic_fallback": ("keep", "keep"),
    "negative_prompt": ("blurry", "blurry"),
    "revise": ("thinking", "thinking"),
    "thinking_tries": ("4", 4),
    "num_timesteps": ("5", 5),
    "timestep_shift": ("2", 2.0),
    "cfg_text_scale": ("3", 3.0),
    "cfg_img_scale": ("1.5", 1.5),
    "cfg_interval": ("0.4,1", (0.4, 1.0)),
    "cfg_renorm_type": ("channel", "channel"),
    "cfg_renorm_min": ("0.5", 0.5),
    "solver": ("dpm", "dpm"),
    "network_interval": ("1", 1),
    "network_gap": ("0.1", 0.1),
    "sde_noise_level": ("0.8", 0.8),
    "sde_window_start": ("1", 1),
    "sde_window_size": ("3", 3),
    "sde_type": ("cps", "cps"),
}


FLAGS = ("stop_when_done", "keep_best")


@pytest.mark.parametrize("kind", [GenerateOptions, RunOptions])
def test_every_setting_is_an_option_of_every_command(kind: type) -> None:
    drawing = [one.name for one in fields(DrawSettings)]
    own = [one.name for one in fields(Settings) if one.name not in ("initial", "improving", *FLAGS)]
    assert set(VALUES) == {*own, *drawing}
    words = ["x", "--stop-when-done", "--no-keep-best", "--effort", "draft"]
    wanted = {"stop_when_done": True, "keep_best": False, "effort": "draft"}
    for name in (*own, *drawing, *(IMPROVE + name for name in drawing)):
        text, value = VALUES[name.removeprefix(IMPROVE)]
        words += [f"--{name.replace('_', '-')}", text]
        wanted[name] = value
    _, changes = parse_with_settings(kind, words, "irg x", "")
    assert changes == wanted
    assert with_options(Settings(), changes).improving.cfg_interval == (0.4, 1.0)


CRITIC_VALUES: dict[str, tuple[str, Any]] = {
    "url": ("http://x/v1", "http://x/v1"),
    "api_key_env": ("KEY", "KEY"),
    "concurrency": ("2", 2),
    "requests_per_minute": ("30", 30.0),
    "timeout_s": ("9", 9.0),
    "attempts": ("2", 2),
    "longest_wait_s": ("3", 3.0),
    "corrections": ("1", 1),
    "max_tokens": ("99", 99),
    "temperature": ("0.5", 0.5),
    "price_in": ("1", 1.0),
    "price_out": ("2", 2.0),
    "budget": ("5", 5.0),
    "cache_dir": ("c", "c"),
    "extra": ('{"top_p": 0.9, "seed": null}', {"top_p": 0.9, "seed": None}),
    "device": ("cpu", "cpu"),
}


@dataclass(frozen=True)
class CriticCommand:
    """A command whose requests may have a critic."""

    critic_options: Annotated[CriticOptions, tyro.conf.Suppress] = field(default_factory=CriticOptions)


@pytest.fixture
def known_critic(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("endpoint", "irg.critics.endpoint:make", registry.CRITICS)
    monkeypatch.setattr(registry, "_found", lambda group: {"endpoint": point})


@pytest.mark.usefixtures("known_critic")
def test_every_field_of_a_critics_options_is_an_option() -> None:
    assert set(CRITIC_VALUES) == {one.name for one in fields(CriticOptions)}
    words = ["--critic", "endpoint:m"]
    for name, (text, _) in CRITIC_VALUES.items():
        words += [f"--critic-{name.replace('_', '-')}", text]
    options, changes = parse_with_settings(CriticCommand, words, "irg x", "")
    assert options.critic_options == CriticOptions(**{name: value for name, (_, value) in CRITIC_VALUES.items()})
    assert changes == {"critic": "endpoint:m"}


@pytest.mark.usefixtures("known_critic")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--critic-url", "http://x"], "--critic-url has no meaning without --critic"),
        (["--critic", "endpoint:m", "--critic-extra", "{"], "--critic-extra is not valid JSON"),
        (["--critic", "endpoint:m", "--critic-extra", "[1]"], "--critic-extra must be a JSON object"),
        (["--critic", "endpoint:m", "--critic-budget", "1"], "budget needs prices"),
        (["--critic", "endpoind:m"], r"no critic 'endpoind' \(did you mean 'endpoint'"),
        (["--critic", "endpoint:m", "--mode", "think"], "critic has no meaning in mode 'think'"),
        (["--critic-fallback", "stop"], "stop"),
    ],
)
def test_mistakes_about_a_critic(words: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse_with_settings(CriticCommand, words, "irg x", "")


def test_a_command_gets_its_own_fields_and_nothing_else() -> None:
    options, changes = parse_with_settings(Command, ["--rounds", "2", "--out", "p"], "irg x", "")
    assert options == Command("p") and type(options) is Command and changes == {"rounds": 2}


def test_what_is_left_out_is_the_models_own() -> None:
    assert read() == {}
    assert read("--no-stop-when-done", "--size", "64x32") == {"stop_when_done": False, "width": 64, "height": 32}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--recall", "prompt"], ["--reflection-context", "prompt"]),
        (["--always"], ["--no-stop-when-done"]),
        (["--set", "cfg_text_scale=4", "stop_when_done=true"], ["--cfg-text-scale", "4", "--stop-when-done"]),
        (["--set", "stop_when_done=false"], ["--no-stop-when-done"]),
        (["--set=recall=prompt"], ["--reflection-context", "prompt"]),
        (
            ["--options", "improve_cfg_interval=[0.1, 0.9]", "--rounds", "2"],
            ["--improve-cfg-interval", "0.1,0.9", "--rounds", "2"],
        ),
    ],
)
def test_old_spellings_work_and_print_the_new_one(
    old: list[str], new: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = read(*new)
    assert capsys.readouterr().err == ""
    assert read(*old) == wanted
    assert new[0] in capsys.readouterr().err


def test_a_mistake_names_the_option() -> None:
    for words, told in (
        (("--improve-num-timesteps", "1"), "improve_num_timesteps must be"),
        (("--mode", "think", "--look", "vit"), "look has no meaning in mode 'think'"),
        (("--set", "steps"), "--set 'steps' should be name=value"),
        (("--colour", "3"), "--colour"),
    ):
        with pytest.raises(ValueError, match=told):
            read(*words)
    with pytest.raises(ValueError, match="--mode"):
        read("--mode", "irg", without=("mode",))


def test_memory_modes_are_those_of_the_memory_plan() -> None:
    """They are written twice because the memory plan loads torch, which --help must not wait for."""
    from irg.model.placement.memory_plan import Memory

    assert get_args(arguments.Memory) == get_args(Memory)
