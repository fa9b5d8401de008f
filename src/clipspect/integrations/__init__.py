"""clipspect inside other libraries."""
