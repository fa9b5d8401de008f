"""Running the service on one machine: a Ray of its own, started and stopped with it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from math import ceil
from typing import Any

from clipspect.errors import UsageError
from clipspect.serving.settings import ServiceSettings

APPLICATION = "clipspect"
OBJECT_STORE_BYTES = 1024**3
"""Shared memory for requests on their way to the replicas."""


def start_service(settings: ServiceSettings, *, host: str, port: int) -> None:
    """Start Ray in this process's name and the service on it; returns when photographs can be scored.

    Ray reports no usage, shows no dashboard, and asks a token of whoever talks to its own ports, which, unlike the
    service's, listen on every address of the machine.

    Raises UsageError: the port is taken, or the models cannot be loaded.
    """
    settings.api_key()  # a bad key is told before anything starts
    settings.references.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _check_port(host, port)
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from clipspect.serving.deployment import build

    ray.init(
        address="local",  # never a cluster that happens to run on this machine
        num_cpus=ceil(settings.replicas * settings.cpus),
        num_gpus=ceil(settings.replicas * settings.gpus) or None,
        include_dashboard=False,
        logging_level=logging.ERROR,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(http_options=HTTPOptions(host=host, port=port), logging_config=quiet)
    try:
        serve.run(build(settings), name=APPLICATION, logging_config=quiet)
    except (RayError, RuntimeError) as error:
        raise UsageError(f"the service could not start: {error}") from error


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


def stop_service() -> None:
    """Stop the service and its Ray."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def run_service(settings: ServiceSettings, *, host: str, port: int, ready: Callable[[], Any]) -> None:
    """Run until SIGINT or SIGTERM; ``ready`` is called once photographs can be scored. Raises UsageError."""
    stopped = threading.Event()
    try:
        start_service(settings, host=host, port=port)
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, which sets handlers of its own
            signal.signal(number, lambda *_: stopped.set())
        ready()
        stopped.wait()
    finally:
        stop_service()
