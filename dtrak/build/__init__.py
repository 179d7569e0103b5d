"""Building a study on an engine: features, indexes and retrained models; plans, costs and checks."""
