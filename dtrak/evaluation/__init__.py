"""How well attributions predict what retraining does."""
