"""Weights that Microsoft published, under the names and in the order of this network.

Names are those of `microsoft-aurora`; the oldest files have one kernel for all variables, and a prefix.

Shape suffixes: D channels of a token, T past steps, K cells of a patch, P rows and columns of a patch.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from millrace.errors import ConfigError, listed
from millrace.models.spec import Adopted
from millrace.systems.weather.aurora.config import LARGE, SMALL, AuroraConfig
from millrace.systems.weather.aurora.conventions import published_statistics
from millrace.systems.weather.units import short_name, short_static_name

_SURFACE, _STATIC = ("2t", "10u", "10v", "msl"), ("lsm", "z", "slt")
_AIR = ("z", "u", "v", "t", "q")
_ALPHA = 8.0
"""Of low-rank updates, which are divided by their rank."""
_OF_A_VARIABLE = re.compile(
    r"encoder\.(surf|atmos)_token_embeds\.weights\.|decoder\.(surf|atmos)_heads\."
)
_UPDATES = "low-rank updates"
_KEY = "train.init_from.published"


def adopt(
    config: AuroraConfig, module: nn.Module, dataset: Any, given: Mapping[str, Tensor]
) -> Adopted:
    """Weights of a published file for a network, see `millrace.models.spec.ModelSpec.published`.

    Variables that the file does not know begin anew, those that the samples do not have are left out.
    Levels are told to the network by their pressure, so that all of them fit. Kernels of more past states
    than the samples give are added up; of fewer, those of the earliest states are zero: the forecast is the
    one without them. Low-rank updates of another rank than ``lora_rank`` become part of the weights that
    they update. Raises `ConfigError` if the file is of another network.
    """
    _check(config)
    source = _Source(_named(given), module)
    surface = [short_name(name) for name in dataset.surface]
    static = [short_static_name(name) for name in dataset.static_names]
    air = [short_name(name) for name in dataset.air]
    steps = dataset.config.input_steps
    source.tokens("encoder.surface_tokens", "encoder.surf_token_embeds", surface + static, steps)
    source.tokens("encoder.air_tokens", "encoder.atmos_token_embeds", air, steps)
    for name, source_name in _outside(config, module):
        source.take(name, source_name)
    for name, source_name in _blocks(config):
        source.block(name, source_name, config.lora_rank)
    for kind, other, names in (("surface", "surf", surface), ("air", "atmos", air)):
        head = f"decoder.{other}_heads"
        source.heads(f"decoder.{kind}_head", head, names, config.head == "direct")
    adopted = source.adopted()
    others = sorted(name for name in adopted.new if name != _UPDATES)
    if config.lora_rank and others:
        raise ConfigError(
            f"model.lora_rank: low-rank updates alone would be trained, and {listed(others)} begin anew: "
            "set it to 0"
        )
    location_C, _ = published_statistics(dataset.surface, dataset.air, dataset.levels)
    unknown = [name for name, x in zip(dataset.variables, location_C, strict=True) if x != x]
    if unknown:
        adopted.changed["channels"] = f"{listed(unknown)} normalised as in these samples"
    return adopted


def _check(config: AuroraConfig) -> None:
    if config.conventions != "published":
        raise ConfigError(
            "model.conventions: published weights are for fields that are normalised in another way; set "
            "it to published"
        )
    for size in (SMALL, LARGE):
        depths = ("embed_dim", "encoder_depths", "decoder_depths")
        if any(getattr(config, key) != getattr(size, key) for key in depths):
            continue
        # What no weight has the shape of.
        for key in ("encoder_heads", "decoder_heads", "perceiver_heads", "window"):
            if getattr(config, key) != getattr(size, key):
                raise ConfigError(
                    f"model.{key}: the published model of {size.embed_dim} channels has "
                    f"{getattr(size, key)}; take these"
                )


def _named(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as files of today have them: without a prefix, a kernel and a head for each variable."""
    # Files of the model of waves call the norms of keys and queries so.
    today = {n: n.removeprefix("net.").replace(".k_ln.", ".ln_k.") for n in given}
    found = {today[n].replace(".q_ln.", ".ln_q."): value for n, value in given.items()}
    for kind, names in (("surf", _SURFACE + _STATIC), ("atmos", _AIR)):
        kernel = found.get(f"encoder.{kind}_token_embeds.weight")
        if kernel is not None and kernel.ndim == 5 and kernel.shape[1] == len(names):
            del found[f"encoder.{kind}_token_embeds.weight"]
            for name, one in zip(names, kernel.split(1, dim=1), strict=True):
                found[f"encoder.{kind}_token_embeds.weights.{name}"] = one
        for part in ("weight", "bias"):
            outputs = _SURFACE if kind == "surf" else _AIR
            head = found.get(f"decoder.{kind}_head.{part}")
            if head is not None and len(head) % len(outputs) == 0:
                del found[f"decoder.{kind}_head.{part}"]
                for index, name in enumerate(outputs):
                    found[f"decoder.{kind}_heads.{name}.{part}"] = head[index :: len(outputs)]
    return found


def _outside(config: AuroraConfig, module: nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of our names and theirs, of encoder and decoder without tokens and heads."""
    yield "encoder.surface_level", "encoder.surf_level_encoding"
    yield "encoder.latents_PD", "encoder.atmos_latents"
    pairs = {
        "encoder.surface_norm": "encoder.surf_norm",
        "encoder.surface_mlp.fc1": "encoder.surf_mlp.net.0",
        "encoder.surface_mlp.fc2": "encoder.surf_mlp.net.2",
        "encoder.embedding.position": "encoder.pos_embed",
        "encoder.embedding.level": "encoder.atmos_levels_embed",
        "decoder.level": "decoder.atmos_levels_embed",
    }
    for name in ("scale", "lead_time", "absolute_time"):
        pairs[f"encoder.embedding.{name}"] = f"encoder.{name}_embed"
    for index in (0, 2):
        pairs[f"encoder.time_mlp.{index}"] = f"backbone.time_mlp.{index}"
    for half, source in (("encoder", "level_agg"), ("decoder", "level_decoder")):
        layer = f"{half}.{source}.layers.0"
        inner = {"to_q": "0.to_q", "to_kv": "0.to_kv", "to_out": "0.to_out", "norm_q": "0.ln_q"}
        inner |= {"norm_k": "0.ln_k", "mlp.fc1": "1.net.0", "mlp.fc2": "1.net.2"}
        for name, other in (inner | {"norm1": "2", "norm2": "3"}).items():
            pairs[f"{half}.aggregation.{name}"] = f"{layer}.{other}"
    number = 0
    for half, depths in (("encoder", config.encoder_depths), ("decoder", config.decoder_depths)):
        inner = {"reduction": "downsample.reduction", "norm": "downsample.norm"}
        if half == "decoder":
            inner = {"expansion": "lin1", "norm": "norm", "mixing": "lin2"}
            inner = {name: f"upsample.{other}" for name, other in inner.items()}
        for level, depth in enumerate(depths[:2]):
            number += depth
            layer = f"backbone.{half}_layers.{level}"
            pairs |= {
                f"blocks.{number}.{name}": f"{layer}.{other}" for name, other in inner.items()
            }
            number += 1
        number += depths[2]
    names = {name for name, _ in module.named_parameters()}
    for name, other in pairs.items():
        for part in ("weight", "bias"):
            if f"{name}.{part}" in names:
                yield f"{name}.{part}", f"{other}.{part}"


def _blocks(config: AuroraConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our names and theirs, of the blocks of the backbone."""
    number = 0
    for half, depths in (("encoder", config.encoder_depths), ("decoder", config.decoder_depths)):
        for level, depth in enumerate(depths):
            for index in range(depth):
                yield f"blocks.{number}", f"backbone.{half}_layers.{level}.blocks.{index}"
                number += 1
            number += level < 2


class _Source:
    """Weights of a file that are taken one after the other."""

    def __init__(self, given: dict[str, Tensor], module: nn.Module) -> None:
        self._left = dict(given)
        self._own = {name: value.detach() for name, value in module.named_parameters()}
        self._weights: dict[str, Tensor] = {}
        self._changed: dict[str, str] = {}
        self._new: dict[str, str] = {}
        self._missing: list[str] = []
        # The same shift of all keys changes no weight of the attention: ours have none.
        for name in [n for n in self._left if n.endswith(".ln_k.bias")]:
            del self._left[name]

    def take(self, name: str, source: str) -> Tensor | None:
        """Take a weight as it is."""
        value = self._left.pop(source, None)
        if value is None:
            self._missing.append(source)
        else:
            self._weights[name] = value
        return value

    def tokens(self, name: str, source: str, variables: Sequence[str], steps: int) -> None:
        """Take the kernels of variables, [D, 1, T, P, P] each."""
        kernels = {v: self._pop(f"{source}.weights.{v}") for v in variables}
        found = [one for one in kernels.values() if one is not None]
        own, bias = self._own[f"{name}.weight"], self._pop(f"{source}.bias")
        cells = own.shape[1] // (steps * len(variables))
        if (
            not found
            or bias is None
            or any(k.ndim != 5 or k[0, 0, 0].numel() != cells for k in found)
        ):
            self._new[f"{name}.weight"] = self._new[f"{name}.bias"] = "no kernels of such patches"
            return
        if unknown := [v for v, one in kernels.items() if one is None]:
            self._changed[name] = f"zero for {listed(unknown)}, which begin anew"
        if found[0].shape[2] != steps:
            told = f"{found[0].shape[2]} past states -> {steps}"
            self._changed[name] = "; ".join(filter(None, (self._changed.get(name), told)))
        zero = torch.zeros_like(found[0])
        parts = [_of_steps(zero if k is None else k, steps) for k in kernels.values()]
        self._weights[f"{name}.weight"] = torch.cat(parts, dim=1).transpose(1, 2).flatten(1)
        self._weights[f"{name}.bias"] = bias

    def heads(self, name: str, source: str, variables: Sequence[str], fits: bool) -> None:
        """Take the rows of variables, [K, D] each; others keep those that they have."""
        new = set()
        for part in ("weight", "bias"):
            own = self._own[f"{name}.{part}"]
            rows = []
            for variable, mine in zip(variables, own.chunk(len(variables)), strict=True):
                theirs = self._pop(f"{source}.{variable}.{part}")
                taken = fits and theirs is not None and len(theirs) == len(mine)
                rows.append(theirs.to(own) if taken and theirs is not None else mine)
                new |= set() if taken else {variable}
            if {*variables} == new:
                self._new[f"{name}.{part}"] = "no heads of such patches"
                if not fits:
                    self._new[f"{name}.{part}"] = (
                        "published heads give states, those of model.head changes"
                    )
            else:
                self._weights[f"{name}.{part}"] = torch.cat(rows)
        if new and new != {*variables}:
            told = listed([v for v in variables if v in new])
            self._new[f"{name}: {told}"] = "not in the file"

    def block(self, name: str, source: str, rank: int) -> None:
        """Take a block of the backbone, and its low-rank updates."""
        for linear in ("fc1", "fc2"):
            for part in ("weight", "bias"):
                self.take(f"{name}.mlp.{linear}.{part}", f"{source}.mlp.{linear}.{part}")
        for norm in ("norm1", "norm2"):
            for part in ("weight", "bias"):
                ours = f"{name}.{norm}.modulation.{part}"
                value = self.take(ours, f"{source}.{norm}.ln_modulation.1.{part}")
                if value is not None:
                    # Shift before scale there, scale before shift here.
                    self._weights[ours] = torch.cat(value.chunk(2)[::-1])
        for linear in ("qkv", "proj"):
            ours = f"{name}.attention.{linear}"
            self.take(f"{ours}.weight", f"{source}.attn.{linear}.weight")
            self.take(f"{ours}.bias", f"{source}.attn.{linear}.bias")
            self._update(name, linear, f"{source}.attn.lora_{linear}.loras", rank)

    def _update(self, name: str, linear: str, source: str, rank: int) -> None:
        down, up = (self._pop(f"{source}.0.lora_{part}") for part in ("A", "B"))
        ours = f"{name}.attention.lora_{linear}"
        if down is None or up is None:
            if rank:
                self._new[_UPDATES] = "zero at first"
            return
        if any(one.startswith(f"{source}.1.") for one in self._left):
            raise ConfigError(
                f"{_KEY}: its low-rank updates differ from step to step of a rollout, and the model has "
                "one for all steps; give weights of another kind"
            )
        up = up.float() * (_ALPHA / len(down))
        if len(down) == rank:
            self._weights[f"{ours}.down.weight"], self._weights[f"{ours}.up.weight"] = down, up
            return
        updated = f"{name}.attention.{linear}.weight"
        if updated in self._weights and up.shape[:1] + down.shape[1:] == self._own[updated].shape:
            self._weights[updated] = self._weights[updated].float() + up @ down.float()
        self._changed[_UPDATES] = f"of rank {len(down)}: now part of the weights"
        if rank:
            self._new[_UPDATES] = "zero at first"

    def adopted(self) -> Adopted:
        """What was taken; raises `ConfigError` for what is missing, does not fit or has no place."""
        left_out = [name for name in self._left if _OF_A_VARIABLE.match(name)]
        unexpected = [name for name in self._left if name not in left_out]
        shapes = [
            f"{name} (has {list(value.shape)}, needs {list(self._own[name].shape)})"
            for name, value in self._weights.items()
            if name in self._own and value.shape != self._own[name].shape
        ]
        unexpected += [name for name in self._weights if name not in self._own]
        kinds = {"missing": self._missing, "unexpected": unexpected, "shape": shapes}
        problems = [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]
        if problems:
            raise ConfigError(
                f"{_KEY}: does not fit the model: {'; '.join(problems)}; give the section model of the "
                "published one, such as embed_dim, the depths and stabilise_level_agg"
            )
        return Adopted(self._weights, self._changed, self._new, sorted(left_out))

    def _pop(self, name: str) -> Tensor | None:
        return self._left.pop(name, None)


def _of_steps(kernel: Tensor, steps: int) -> Tensor:
    """Kernel for another number of past states, the last of which stays the last, [D, 1, T, P, P]."""
    more = steps - kernel.shape[2]
    if more > 0:
        zero = kernel.new_zeros(*kernel.shape[:2], more, *kernel.shape[3:])
        return torch.cat([zero, kernel], dim=2)
    # As if the earlier states were those of the first one that is given.
    first = kernel[:, :, : 1 - more].sum(dim=2, keepdim=True)
    return torch.cat([first, kernel[:, :, 1 - more :]], dim=2)
