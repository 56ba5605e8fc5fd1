"""A fitted model as one graph for other runtimes, which has to score like the model itself."""
