"""What MLflow's model registry holds, asked with MLflow's own client.

alias_version("parcels", "champion")     # 2, or None: no such alias, no such model
version_tags("parcels", 2)               # {"adapter": "4be0…"}
"""

from __future__ import annotations

from finetune_pipeline.tracking.client import connect


def alias_version(name: str, alias: str) -> int | None:
    models = connect().MlflowClient().search_registered_models(f"name = '{name}'")
    version = models[0].aliases.get(alias) if models else None
    return int(version) if version is not None else None


def version_tags(name: str, version: int) -> dict[str, str]:
    return dict(connect().MlflowClient().get_model_version(name, str(version)).tags)
