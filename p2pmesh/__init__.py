"""A mesh of language models that nobody leads."""
