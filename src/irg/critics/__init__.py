"""Critics: who looks at an image in the model's place, says what to change, and decides when it is done.

critic = make_critic("endpoint:MODEL", CriticOptions(url="http://localhost:8000/v1"))
verdict = critic.review(Review("a red cup", image)).result()
critic.close()
"""

from irg.critics.base import Critic, CriticError, Review, TextCritic, Verdict, WorkerCritic
from irg.critics.options import CriticOptions, make_critic

__all__ = ["Critic", "CriticError", "CriticOptions", "Review", "TextCritic", "Verdict", "WorkerCritic", "make_critic"]
