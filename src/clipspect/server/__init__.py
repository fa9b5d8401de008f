"""HTTP service and web page, both built on :class:`clipspect.server.engine.Engine`."""
