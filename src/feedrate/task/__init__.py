"""What is learned: the loss, the metrics and the model's outputs."""
