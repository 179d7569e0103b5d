"""Building a study: features, indexes and retrained models by an engine; plans, costs and checks."""
