"""Deploying."""

import logging
import urllib.error
import urllib.request

from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from pipelines.config.recipe import Recipe
from pipelines.config.schema import ServeConfig
from pipelines.core.artifacts import Endpoint
from pipelines.core.errors import UserError
from pipelines.core.progress import Progress
from pipelines.registry.registry import Registry
from pipelines.storage import Store
from serve_app.api.ingress import Ingress
from serve_app.replica import EngineReplica
from serve_app.routing.names import Router
from serve_app.routing.offer import app_name, choose_port, served_models


def run_endpoint(
    recipe: Recipe, store: Store, progress: Progress, fingerprint: str | None = None
) -> Endpoint:
    """Deploy onto the running Ray, wait until every model answers, and return where.

    The endpoint of a recipe of this name is replaced, those of others stay; a Serve that runs already keeps its host and
    port. Raises UserError for models that are not there, a port or path in use, or a deployment that cannot start.
    """
    config, want = recipe.serve, recipe.resources
    served = served_models(recipe, store, fingerprint)
    # Importing ray.serve sets its logger to INFO: it shall say what "ray" may say, no more.
    logging.getLogger("ray.serve").setLevel(logging.getLogger("ray").getEffectiveLevel())
    url = _listen(config)
    model = recipe.model
    engine = serve.deployment(EngineReplica).options(
        num_replicas=config.replicas,
        max_ongoing_requests=2 * config.max_batch,
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_cpus": want.serve_cpus, "num_gpus": want.serve_gpus},
    )
    copies = {
        f"merged{i}": engine.options(name=f"{name}-merged").bind(
            model, config, store.uri, want.serve_cpus, version_id
        )
        for i, (name, version_id) in enumerate(served.merged.items())
    }
    ingress = serve.deployment(Ingress).options(
        max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    base = engine.options(name="base").bind(model, config, store.uri, want.serve_cpus, None)
    try:
        serve.run(
            ingress.bind(store.uri, served, base, **copies),
            name=app_name(recipe),
            route_prefix=config.path,
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
    except RayServeException as error:
        raise UserError(
            f"serve.path={config.path}: another application on this cluster answers there; set serve.path to another "
            f"one, such as /{recipe.name}, or stop that application"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"serve: the endpoint did not start: {error}; -v shows the replica's log"
        ) from error
    endpoint = Endpoint(
        f"{url}{config.path.rstrip('/')}", tuple(Router(Registry(store), served).known())
    )
    check_answers(endpoint)
    progress.note(f"serve: {endpoint.url}/v1 answers as {', '.join(endpoint.models)}")
    return endpoint


def _listen(config: ServeConfig) -> str:
    """Where Serve listens; it is started when it does not run yet."""
    if not serve.status().proxies:
        serve.start(http_options=HTTPOptions(host=config.host, port=choose_port(config)))
    client = _get_global_client()
    assert client is not None
    return f"http://{client.http_config.host}:{client.http_config.port}"


def check_answers(endpoint: Endpoint) -> None:
    """Raise UserError when nothing answers at the address."""
    try:
        with urllib.request.urlopen(f"{endpoint.url}/healthz", timeout=30) as reply:
            reply.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"{endpoint.url} does not answer ({error}); if Ray Serve was already running on this cluster for other "
            "hosts, stop it with `serve shutdown` and give the same command again"
        ) from error


def stop_endpoint(recipe: Recipe) -> None:
    """Take a recipe's endpoint down; running answers get their time to end. Other applications on the cluster stay."""
    serve.delete(app_name(recipe))
    if not serve.status().applications:
        serve.shutdown()
