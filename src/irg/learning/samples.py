"""Images from fixed prompts while a model trains."""

from irg.engine.engine import Engine
from irg.engine.runner import Runner
from irg.learning.recipe import Samples
from irg.model.weights.checkpoint import LoadedModel
from irg.model.weights.profile import Profile
from irg.model.weights.tokenizer import TextTokenizer
from irg.reasoning.pipeline import IRGOutput, IRGPipeline


def draw(loaded: LoadedModel, tokenizer: TextTokenizer, profile: Profile, samples: Samples) -> dict[str, IRGOutput]:
    """Run every prompt; name -> result. The model is left in eval mode.

    Raises:
        ValueError: a prompt or a setting is not usable.
    """
    engine = Engine(Runner(loaded.model, loaded.autoencoder), tokenizer, profile.draft_texts)
    pipe = IRGPipeline(engine, profile, profile.name)
    outputs = pipe(list(samples.prompts), seed=samples.seed, **samples.settings)
    return {f"{i:02d}": output for i, output in enumerate(outputs)}
