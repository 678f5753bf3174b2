"""A checkpoint as an MLflow model: videos in, the scores of their classes out. Runs where MLflow loads the model."""

from __future__ import annotations

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from tpn_ray.predict.predictor import load


class VideoModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are untyped here
    """A model that takes paths or URIs of videos. The scores are those of jobs/evaluate.py with one center view."""

    def load_context(self, context) -> None:  # type: ignore[no-untyped-def]
        """Load the checkpoint's folder. Called by MLflow."""
        self.predictor = load(context.artifacts["checkpoint"])

    def predict(self, model_input: list[str]) -> list[dict[str, dict[str, float]]]:
        """Return, for each video, label set -> class -> score. Raises BadVideo with the reason."""
        answers = []
        for path in model_input:
            prediction = self.predictor.predict(path)
            everything = max(len(classes) for classes in prediction.label_sets.values())
            answers.append({name: dict(best) for name, best in prediction.top(everything).items()})
        return answers


set_model(VideoModel())
