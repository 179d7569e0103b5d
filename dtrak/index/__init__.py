"""The feature store and the FAISS index."""
