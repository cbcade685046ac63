"""The models by name."""

from millrace.errors import ConfigError
from millrace.imported import Imported
from millrace.models.spec import ModelSpec

MODELS: Imported[ModelSpec] = Imported(
    {
        "gino": "millrace.models.gino:SPEC",
        "gfno": "millrace.models.gfno:SPEC",
        "downscaler": "millrace.models.downscaler:SPEC",
        "regression": "millrace.models.regression:SPEC",
        "aurora": "millrace.models.aurora.spec:SPEC",
        "smart": "millrace.models.smart.spec:SPEC",
    }
)


def get_model(name: str) -> ModelSpec:
    """Look up a model; raises `ConfigError` that lists the names."""
    if name not in MODELS:
        raise ConfigError(f"model.name {name!r}: expected one of {', '.join(MODELS)}")
    return MODELS[name]
