"""The models by name."""

from millrace.errors import ConfigError
from millrace.models import downscaler, gfno, gino, regression, smart
from millrace.models.aurora import spec as aurora
from millrace.models.spec import ModelSpec

MODELS: dict[str, ModelSpec] = {
    spec.name: spec
    for spec in (
        gino.SPEC,
        gfno.SPEC,
        downscaler.SPEC,
        regression.SPEC,
        aurora.SPEC,
        smart.SPEC,
    )
}


def get_model(name: str) -> ModelSpec:
    """Look up a model; raises `ConfigError` that lists the names."""
    if name not in MODELS:
        raise ConfigError(f"model.name {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]
