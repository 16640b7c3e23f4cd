"""The routing table: which model name leads to which route, and the serving status of every task.

    support_tickets           the champion
    support_tickets@4         version 4, while it is champion or challenger
    support_tickets@base      the base model with the task's system prompt
    base                      the base model without it, where all tasks share one (in 4 bits, if all versions are)

A task's status in GET /version is in version_response.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from finetune_pipeline.serve.deployment_state import DeploymentState, Version, VersionRecord, version_record
from finetune_pipeline.serve.model_routes import BASE, Route
from finetune_pipeline.serve.version_response import ServedRoute, TaskVersions


@dataclass(frozen=True, slots=True)
class ServingStatus:
    """What this process serves of one task, and why not what is desired: `errors` by subject (champion, challenger,
    name, state)."""

    champion: Route | None = None
    challenger: Route | None = None
    desired: DeploymentState = field(default_factory=DeploymentState)
    errors: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> TaskVersions:
        def served(route: Route | None) -> ServedRoute | None:
            return {"version": route.version, "adapter": route.adapter, "since": route.since} if route else None

        def desired(version: Version | None) -> VersionRecord | None:
            return version_record(version) if version else None

        return {
            "served_as": self.champion.model if self.champion else None,
            "champion": served(self.champion),
            "challenger": served(self.challenger),
            "desired": {
                "champion": desired(self.desired.champion),
                "challenger": desired(self.desired.challenger),
            },
            "errors": dict(self.errors),
        }


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Everything the endpoint serves at one moment; replaced as a whole, never changed."""

    routes: Mapping[str, Route] = field(default_factory=dict)
    tasks: Mapping[str, ServingStatus] = field(default_factory=dict)


def build_table(tasks: Mapping[str, ServingStatus]) -> RoutingTable:
    """All model names of these tasks. When two tasks have the same name, the first in the alphabet has it, and the
    status of the other gets an error."""
    statuses, routes = dict(tasks), dict[str, Route]()
    bases: dict[str, Route] = {}  # by the hash of their weights, or a provider's name for them
    for task, status in tasks.items():
        for route, is_challenger in ((status.champion, False), (status.challenger, True)):
            if route is None:
                continue
            name = route.model
            if name == BASE or "@" in name or (name in routes and routes[name].task != task):
                error = f"the name {name!r} is taken; declare another one as `serve.alias`"
                statuses[task] = replace(status, errors={**status.errors, "name": error})
                continue
            shared = bases.get(route.base.base.weights)
            if shared is None or (shared.base.base.quantized and not route.base.base.quantized):
                bases[route.base.base.weights] = route
            routes |= {named.model: named for named in _names(route) if not (is_challenger and named.model == name)}
    if len(bases) == 1:
        route = _base(next(iter(bases.values())))
        routes[BASE] = replace(route, model=BASE, task="", system="", answer=None)
    return RoutingTable(routes, statuses)


def _names(route: Route) -> Iterator[Route]:
    """The route under each of its names."""
    yield route
    yield replace(route, model=f"{route.model}@{route.version}", on_invalid="flag")
    yield replace(_base(route), model=f"{route.model}@{BASE}")


def _base(route: Route) -> Route:
    return replace(route, version=0, adapter=None, id=route.base, on_invalid="flag")
