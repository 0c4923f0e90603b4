"""What MLflow is told of a run, beside its steps and after them."""
