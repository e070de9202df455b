"""Starts and stops a recipe's endpoint on the running Ray."""

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
from pipelines.core.quiet_loggers import follow_ray_logger
from pipelines.registry.registry import Registry
from pipelines.steps.inputs import Inputs
from pipelines.storage import Store
from serve_app.api.ingress import Ingress
from serve_app.replica import EngineReplica
from serve_app.routing.names import Router
from serve_app.routing.offer import app_name, choose_port, served_models


def run_endpoint(inputs: Inputs, store: Store, progress: Progress) -> Endpoint:
    """Deploy a recipe's endpoint, wait until every model answers, and return its URL and names.

    Replaces the endpoint of a recipe with the same name. A Serve that already runs keeps its host
    and port. Raises UserError for a model that does not exist, a chat template that cannot be used,
    a port or path in use, or a deployment that cannot start.
    """
    recipe = inputs.recipe
    config, resources = recipe.serve, recipe.resources
    served = served_models(recipe, store, inputs.base_fingerprint)
    template = inputs.template
    follow_ray_logger("ray.serve")
    url = _listen(config)
    model = recipe.model
    engine = serve.deployment(EngineReplica).options(
        num_replicas=config.replicas,
        max_ongoing_requests=2 * config.max_batch,
        max_queued_requests=config.max_queued,
        graceful_shutdown_timeout_s=60,
        ray_actor_options={"num_cpus": resources.serve_cpus, "num_gpus": resources.serve_gpus},
    )
    copies = {
        f"merged{i}": engine.options(name=f"{name}-merged").bind(
            model, config, store.uri, resources.serve_cpus, version_id, template
        )
        for i, (name, version_id) in enumerate(served.merged.items())
    }
    ingress = serve.deployment(Ingress).options(
        max_ongoing_requests=4096, ray_actor_options={"num_cpus": 0}
    )
    base = engine.options(name="base").bind(
        model, config, store.uri, resources.serve_cpus, None, template
    )
    try:
        serve.run(
            ingress.bind(store.uri, served, base, **copies),
            name=app_name(recipe),
            route_prefix=config.path,
            logging_config={"enable_access_log": False, "log_level": "ERROR"},
        )
    except RayServeException as error:
        raise UserError(
            f"serve.path={config.path}: another application on this cluster answers there; set "
            f"serve.path to another one, such as /{recipe.name}, or stop that application"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"serve: the endpoint did not start: {error}; -v shows the replica's log"
        ) from error
    endpoint = Endpoint(
        f"{url}{config.path.rstrip('/')}", tuple(Router(Registry(store), served).names())
    )
    check_answers(endpoint)
    progress.note(f"serve: {endpoint.url}/v1 answers as {', '.join(endpoint.models)}")
    return endpoint


def _listen(config: ServeConfig) -> str:
    """Start Serve unless it runs; returns the URL on which it listens."""
    if not serve.status().proxies:
        serve.start(http_options=HTTPOptions(host=config.host, port=choose_port(config)))
    # Ray has no public way to ask a running Serve for its host and port (`serve.status` has the
    # proxies without them, and the REST API needs the dashboard).
    client = _get_global_client()
    assert client is not None
    return f"http://{client.http_config.host}:{client.http_config.port}"


def check_answers(endpoint: Endpoint) -> None:
    """Raise UserError when the endpoint does not answer at its URL."""
    try:
        with urllib.request.urlopen(f"{endpoint.url}/healthz", timeout=30) as reply:
            reply.read()
    except (urllib.error.URLError, OSError) as error:
        raise UserError(
            f"{endpoint.url} does not answer ({error}); if Ray Serve was already running on this "
            "cluster for other hosts, stop it with `serve shutdown` and give the same command again"
        ) from error


def stop_endpoint(recipe: Recipe) -> None:
    """Stop a recipe's endpoint after its running answers; other applications stay."""
    serve.delete(app_name(recipe))
    if not serve.status().applications:
        serve.shutdown()
