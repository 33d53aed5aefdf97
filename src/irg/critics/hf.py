"""A vision-language model of the transformers library, on this machine, as a critic."""

from irg.critics import form
from irg.critics.base import CriticError, Review, Verdict, WorkerCritic
from irg.critics.options import CriticOptions, require_rest
from irg.critics.vision_language import VisionLanguageModel
from irg.endpoints import EndpointError


class VisionLanguageCritic(WorkerCritic):
    """Asks a loaded model, one image at a time."""

    def __init__(self, model: VisionLanguageModel, options: CriticOptions) -> None:
        super().__init__(f"hf:{model.name}")
        self._model, self._options = model, options

    def judge(self, review: Review) -> Verdict:
        """See :meth:`WorkerCritic.judge`."""
        options, question = self._options, form.question(review)
        try:
            _, verdict = self._model.ask(
                review.image, question, form.read, options.corrections, options.max_tokens, options.temperature
            )
        except EndpointError as error:
            raise CriticError(error.kind, f"{self.name}: {error}") from error
        return verdict


def make(rest: str, options: CriticOptions) -> VisionLanguageCritic:
    """hf:MODEL, a vision-language model of the hub, or a folder."""
    return VisionLanguageCritic(VisionLanguageModel.load(require_rest("hf", rest, "MODEL"), options.device), options)
