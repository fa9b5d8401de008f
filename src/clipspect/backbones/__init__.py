"""Whatever turns pixels and sentences into Features and embeddings."""
