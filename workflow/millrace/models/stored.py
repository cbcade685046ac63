"""Parameters that state dicts hold in another form: that of a library, or of earlier versions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class StoredParameter(nn.Module, ABC):
    """A module that is one parameter, ``tensor``, in a form of its own."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.tensor = nn.Parameter(value)

    @abstractmethod
    def stored(self, value: Tensor) -> Tensor:
        """The form in which state dicts hold a value, of another shape."""

    @abstractmethod
    def restored(self, value: Tensor) -> Tensor:
        """Undo `stored`."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        value = self.tensor if keep_vars else self.tensor.detach()
        destination[f"{prefix}tensor"] = self.stored(value)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *arguments: Any
    ) -> None:
        name = f"{prefix}tensor"
        if name in state_dict and state_dict[name].shape == self.stored(self.tensor).shape:
            state_dict = {**state_dict, name: self.restored(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def restored(module: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values by name in the form of a module's parameters, whichever form they have."""
    found = dict(values)
    for prefix, one in module.named_modules():
        name = f"{prefix}.tensor"
        if not isinstance(one, StoredParameter) or name not in found:
            continue
        if found[name].shape != one.tensor.shape:
            found[name] = one.restored(found[name])
    return found
