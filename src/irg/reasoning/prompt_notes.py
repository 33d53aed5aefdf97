"""What a model can't do with a prompt, as lines for its user: by the plug-in that the model's ``irg.json`` names."""

from irg import registry


def notes_on(prompt: str, name: str) -> list[str]:
    """The notes of a plug-in of the group ``irg.prompt_notes`` on a prompt; none where the name is empty or its package
    is not installed."""
    if name not in registry.names(registry.PROMPT_NOTES):
        return []
    return list(registry.load(registry.PROMPT_NOTES, name)(prompt))
