"""How good a model is, measured the same way for every version."""

from model.evaluation.choices import ChoiceResult, Question, choice_accuracy, read_questions
from model.evaluation.losses import example_losses, held_out_loss
from model.evaluation.perplexity import PerplexityResult, perplexity

__all__ = [
    "ChoiceResult",
    "PerplexityResult",
    "Question",
    "choice_accuracy",
    "example_losses",
    "held_out_loss",
    "perplexity",
    "read_questions",
]
