"""A method and a backbone for clipspect, as an example."""
