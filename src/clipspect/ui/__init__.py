"""The page: the viewer over the REST application, in one process."""
