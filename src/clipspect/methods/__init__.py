"""One module per published method; :mod:`clipspect.registry` finds them by name."""
