"""Service on one machine: in this process, or with several replicas on a private Ray instance."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Any

from clipspect.errors import UsageError
from clipspect.server.engine import make_engine, store_profiles
from clipspect.server.http_server import HttpServer, check_port
from clipspect.server.settings import ServiceSettings

if TYPE_CHECKING:
    from clipspect.server.app import Backend

APPLICATION = "clipspect"
OBJECT_STORE_BYTES = 1024**3
"""Shared memory for requests sent to the replicas."""
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Recommended by Ray Serve for throughput: fewer thread hops. Blocking work of a replica already runs in threads.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
}
"""Environment variables of Ray's processes, unless the operator has set them."""
_running: list[HttpServer] = []


def start_service(settings: ServiceSettings, *, host: str, port: int) -> None:
    """Start the service; return when images can be scored. Without need for Ray it runs in this process.

    Profiles are stored here, before anything answers: a replica that restarts must not undo changes of clients.

    Raises:
        UsageError: the port is in use, Ray cannot start, or the models cannot be loaded.
        ProfileError: a profile that this service cannot use.
    """
    from clipspect.server.app import create_app

    settings.api_keys()  # report a bad key before anything starts
    settings.references.mkdir(parents=True, exist_ok=True)
    check_port(host, port)
    backend = _ray_backend(settings) if settings.needs_ray else _local_backend(settings)
    _running.append(HttpServer(create_app(backend, settings), host=host, port=port))


def _local_backend(settings: ServiceSettings) -> Backend:
    from clipspect.server.local import LocalBackend

    engine = make_engine(settings)
    engine.store_profiles(settings.profiles)
    engine.load()
    return LocalBackend(engine, settings)


def _ray_backend(settings: ServiceSettings) -> Backend:
    """Start Ray and the replicas.

    Ray reports no usage and shows no dashboard. Its own ports listen on every address of the machine, unlike the
    service's port, and require a token.
    """
    store_profiles(settings)
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import ProxyLocation
    from ray.serve.schema import LoggingConfig

    from clipspect.server.deployment import RayBackend, replicas

    try:
        ray.init(
            address="local",  # do not join a cluster that already runs on this machine
            num_cpus=ceil(settings.replicas * settings.cpus),
            num_gpus=ceil(settings.replicas * settings.gpus) or None,
            include_dashboard=False,
            logging_level=logging.ERROR,
            object_store_memory=OBJECT_STORE_BYTES,
        )
    except Exception as error:  # Ray raises a bare Exception if it cannot start in time
        raise UsageError(f"Ray could not start on this machine: {error}") from error
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    # no Ray proxy: it adds two process hops to each request
    serve.start(proxy_location=ProxyLocation.Disabled, logging_config=quiet)
    try:
        handle = serve.run(replicas(settings), name=APPLICATION, route_prefix=None, logging_config=quiet)
    except (RayError, RuntimeError) as error:
        raise UsageError(f"the service could not start: {error}") from error
    return RayBackend(handle, settings)


def stop_service() -> None:
    """Stop the service, and its Ray instance if it has one."""
    while _running:
        _running.pop().stop()
    if "ray" not in sys.modules:
        return
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def run_service(settings: ServiceSettings, *, host: str, port: int, ready: Callable[[], Any]) -> None:
    """Run until SIGINT or SIGTERM; call ``ready`` once images can be scored. Raises UsageError."""
    from clipspect.server.middleware import log_requests

    stopped = threading.Event()
    log_requests()
    try:
        start_service(settings, host=host, port=port)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which installs its own handlers
            signal.signal(number, lambda *_: stopped.set())
        ready()
        stopped.wait()
    finally:
        stop_service()
