"""A checkpoint as a model of MLflow: videos in, the scores of their classes out. Runs where MLflow loads the model."""

from __future__ import annotations

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from tpn_ray.predict.predictor import load


class VideoModel(PythonModel):  # type: ignore[misc]  # MLflow's classes are untyped here
    """`predict` takes paths or URIs of videos; the scores are those of jobs/evaluate.py with one centre view."""

    def load_context(self, context) -> None:  # type: ignore[no-untyped-def]
        """Called by MLflow, with the checkpoint's folder."""
        self.predictor = load(context.artifacts["checkpoint"])

    def predict(self, model_input: list[str]) -> list[dict[str, dict[str, float]]]:
        """For each video, label set -> class -> score. Raises BadVideo with the reason."""
        answers = []
        for path in model_input:
            prediction = self.predictor.predict(path)
            everything = max(len(classes) for classes in prediction.label_sets.values())
            answers.append({name: dict(best) for name, best in prediction.top(everything).items()})
        return answers


set_model(VideoModel())
