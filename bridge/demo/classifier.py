"""A real model: scikit-learn's logistic regression on the handwritten digits that the package ships.

It is trained on a part of the images and asked about the rest only, so its accuracy means something. The one place
that knows scikit-learn, which only `edge-bridge[demo]` installs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from bridge.errors import OperatorError

MODEL_NAME = "digits-logistic-regression"
TRAINING_SHARE = 0.6
PIXEL_MAX = 16
PROBABILITY_DIGITS = 4


class Answer(NamedTuple):
    """What the model says about one image."""

    label: str
    probabilities: dict[str, float]
    latency_ms: float
    is_right: bool


@dataclass(frozen=True, slots=True)
class Classifier:
    """A trained model, and images that it has never seen."""

    model: Any
    version: str
    images: Any
    labels: Any

    @classmethod
    def train(cls, seed: int) -> Self:
        """Train; takes a second or two. The same seed gives the same model and images. Raises OperatorError."""
        try:
            import sklearn
            from sklearn.datasets import load_digits
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise OperatorError(
                "the demo's classifier needs scikit-learn, which is not installed",
                "pip install 'edge-bridge[demo]', or in the repository: make setup",
            ) from error
        images, labels = load_digits(return_X_y=True)
        known, unseen, known_labels, unseen_labels = train_test_split(
            images / PIXEL_MAX, labels, train_size=TRAINING_SHARE, random_state=seed, stratify=labels
        )
        model = LogisticRegression(max_iter=1000).fit(known, known_labels)
        return cls(model, f"sklearn-{sklearn.__version__}-seed-{seed}", unseen, unseen_labels)

    def classify(self, frame: int) -> Answer:
        """Return what the model says about a frame; after the last image the first one comes again."""
        place = frame % len(self.images)
        started = time.perf_counter()
        shares = self.model.predict_proba(self.images[place : place + 1])[0]
        latency_ms = (time.perf_counter() - started) * 1000
        best = int(shares.argmax())
        classes = [str(name) for name in self.model.classes_]
        return Answer(
            label=classes[best],
            probabilities=dict(zip(classes, (round(float(p), PROBABILITY_DIGITS) for p in shares), strict=True)),
            latency_ms=round(latency_ms, 3),
            is_right=bool(self.model.classes_[best] == self.labels[place]),
        )
