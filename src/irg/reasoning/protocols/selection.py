"""Which protocol a model is run with, its settings, and its official texts when they are needed."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irg.critics.options import SELF, check_critic
from irg.model.network.config import ModelConfig
from irg.model.weights.folders import is_model_folder, model_folder
from irg.model.weights.profile import FILE, Profile
from irg.model.weights.weight_sets import AUTOENCODER, USUAL, weight_sets
from irg.reasoning.protocols.base import Protocol, Task, find, states_no_rules
from irg.reasoning.protocols.known_models import DEFAULT_PROTOCOL, protocol_of, usual_weights
from irg.reasoning.protocols.official_texts import read_texts
from irg.reasoning.settings import IMPROVE, Settings, with_options


@dataclass(frozen=True)
class Selected:
    """A model's protocol, and why it is this one."""

    protocol: Protocol
    reason: str


def select_protocol(name: str | None, model: str, folder: Path, profile: Profile | None) -> Selected:
    """The protocol that was named, or else the model's.

    Raises:
        ValueError: there is no protocol of that name.
    """
    if name is not None:
        return Selected(find(name), "it was asked for")
    found, reason = protocol_of(model, folder, profile.protocol if profile else "")
    try:
        return Selected(find(found), reason)
    except ValueError as error:
        raise ValueError(f"{folder}: {reason}, but {error}") from error


def find_model(
    model: str | Path,
    weights: str | None,
    protocol: str | None,
    say: Callable[[str], None],
    offline: bool = False,
    partial: bool = False,
) -> tuple[Path, str | None]:
    """A model's folder, downloaded if it has to be, and the name of the weights to take (None: the usual ones).

    Args:
        weights: those that were asked for; default: those that a known model is run with in the protocol.
        offline: download nothing.
        partial: a hub model without an autoencoder will do.

    Raises:
        ValueError: there is no such model, or it can't be had.
    """
    name = str(model)
    if weights is not None:
        return model_folder(model, weights, say, not offline, partial), weights
    wanted = None if is_model_folder(name) else usual_weights(name, Path(name), protocol)
    folder = model_folder(model, wanted, say, not offline, partial)
    usual = usual_weights(name, folder, protocol)
    sets = weight_sets(path.name for path in folder.iterdir()).keys() - {AUTOENCODER}
    if usual not in sets or usual == next((name for name in USUAL if name in sets), None):
        return folder, None
    others = ", ".join(sorted(sets - {usual}))
    say(f"Weights: {usual}, as this model is run with them{f'; --weights takes others: {others}' if others else ''}")
    return folder, usual


def usual_settings(config: ModelConfig, profile: Profile, protocol: Protocol, parallel: bool = False) -> Settings:
    """The settings of a model in a protocol: those of its profile over the protocol's; under a protocol that is not its
    own, the protocol's over the profile's, and without the profile's critic. It is left out with ``parallel``, too,
    where several processes run the model: its verdicts might come to each in another order.

    Raises:
        ValueError: the profile's critic is none that a model may bring: the name alone of one that is installed.
    """
    size = (protocol.vae_resize if states_no_rules(config) else config.vae_resize).max_size
    side = {"height": size, "width": size}
    if profile.protocol == protocol.name:
        settings = with_options(with_options(Settings.from_dict(side), protocol.settings), _by_name(profile.settings))
    else:
        settings = with_options(Settings.from_dict(side | profile.settings), protocol.settings)
    if ":" in settings.critic:  # an endpoint's costs money and gets the images: that is for the user to choose
        raise ValueError(f"{FILE}: a model's own critic must be a name alone, got {settings.critic!r}")
    if parallel or protocol.name != (profile.protocol or DEFAULT_PROTOCOL):
        return with_options(settings, {"critic": SELF})
    check_critic(settings.critic)
    return settings


def _by_name(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings in the form of ``Settings.to_dict`` as options by name."""
    own = {name: value for name, value in settings.items() if name not in ("initial", "improving")}
    later = {IMPROVE + name: value for name, value in settings.get("improving", {}).items()}
    return own | settings.get("initial", {}) | later


class ProtocolTexts:
    """The texts of a model's protocol: each is read once, when the first program needs it.

    Args:
        system_prompt: takes the place of the protocol's system prompt, and of the profile's.
        texts: given ones, which are not read from their home.
        say: gets a line before something is downloaded.
        offline: never download.
    """

    def __init__(
        self,
        protocol: Protocol,
        profile: Profile,
        system_prompt: str | None = None,
        texts: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _: None,
        offline: bool = False,
    ) -> None:
        self.protocol, self.profile, self.system_prompt = protocol, profile, system_prompt
        self._texts, self._say, self._offline = dict(texts or {}), say, offline

    def read(self, task: Task, mode: str) -> dict[str, str]:
        """The texts that a task needs, by name.

        Raises:
            ValueError: one is not in the cache and can't be had; the message says what to do.
        """
        names = [name for name in self.protocol.text_names(task, mode) if not self._given(name)]
        self._load(name for name in names if name not in self._texts)
        return {name: self._texts[name] for name in names}

    def system(self, task: Task, texts: Mapping[str, str]) -> str:
        """The system prompt of a task's programs; empty where they have none."""
        if self.system_prompt is not None:
            return self.system_prompt
        if not self.protocol.texts:
            return self.profile.system_prompt
        return texts.get(self.protocol.system_text(task), "")

    def _given(self, name: str) -> bool:
        """Whether the user's own system prompt stands for this text."""
        return self.system_prompt is not None and name in {self.protocol.system_text(t) for t in ("generate", "ask")}

    def _load(self, names: Iterable[str]) -> None:
        missing = list(names)
        wanted = [self.protocol.texts[name] for name in missing]
        found = read_texts(wanted, self._say, self._offline) if wanted else []
        self._texts |= dict(zip(missing, found, strict=True))
