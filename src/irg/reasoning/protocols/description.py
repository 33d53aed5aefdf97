"""What ``irg model info`` says of a model's protocol: which it is, why, and where its texts are."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from irg.model.weights.profile import Profile, read_profile
from irg.reasoning.protocols.known_models import known_id
from irg.reasoning.protocols.official_texts import is_cached
from irg.reasoning.protocols.selection import select_protocol


@dataclass(frozen=True)
class TextFacts:
    """An official text: where it is from, its characters, and whether the cache has it."""

    url: str
    license: str
    length: int
    cached: bool


@dataclass(frozen=True)
class ProtocolFacts:
    """A model's protocol. ``problem``: why it can't be run; empty where it can."""

    name: str
    reason: str
    texts: dict[str, TextFacts]
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def describe_protocol(model: str, folder: Path) -> ProtocolFacts:
    """The protocol that a model gets if nobody names one."""
    profile = read_profile(folder)
    try:
        selected = select_protocol(None, model, folder, profile)
    except ValueError as error:
        return ProtocolFacts(
            profile.protocol if profile else "", "irg.json in the model's folder names it", {}, str(error)
        )
    texts = {
        name: TextFacts(text.url, text.origin.license, text.length, is_cached(text))
        for name, text in selected.protocol.texts.items()
    }
    return ProtocolFacts(selected.protocol.name, selected.reason, texts)


def profile_of_converted(model: str, folder: Path, otherwise: Profile) -> Profile | None:
    """The profile of a known model's converted folder, whose name may tell nothing; None: as it is.

    Args:
        otherwise: what a folder without a profile has.
    """
    profile = read_profile(folder) or otherwise
    if profile.protocol or known_id(model, folder) is None:
        return None
    return replace(profile, protocol=select_protocol(None, model, folder, None).protocol.name)


def protocol_lines(facts: ProtocolFacts) -> list[str]:
    """The facts as text."""
    if facts.problem:
        return [f"protocol: UNUSABLE: {facts.problem}"]
    lines = [f"protocol: {facts.name}, as {facts.reason}"]
    cached = [name for name, text in facts.texts.items() if text.cached]
    if cached:
        lines.append(f"  texts in the cache: {', '.join(cached)}")
    missing = {name: text for name, text in facts.texts.items() if not text.cached}
    for url in dict.fromkeys(text.url for text in missing.values()):
        own = [name for name, text in missing.items() if text.url == url]
        lines.append(f"  texts read from {url} when they are needed: {', '.join(own)}")
    return lines
