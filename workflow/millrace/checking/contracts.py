"""What every model promises the training engine and those who use its checkpoints.

A contract is a function that raises `ContractError` where its promise, the first line of its docstring,
does not hold, and `NotTried` where a model may do without it. It is known by the name of the function.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from millrace.checking.case import (
    ALONE,
    Case,
    NotTried,
    advance,
    is_finite,
    require,
    samples_of,
    target,
)
from millrace.checking.ranks import on_ranks
from millrace.config import Settings
from millrace.data.recipe import recipe_of
from millrace.errors import listed
from millrace.evaluation.exporting import checked, traced
from millrace.evaluation.loaded import LoadedModel, load
from millrace.evaluation.program import NotExportable
from millrace.evaluation.trained_model import finite
from millrace.models.spec import ModelSpec
from millrace.systems.registry import get_model, load_plugins
from millrace.training import run_hash
from millrace.training.distributed import Ranks
from millrace.training.engine import Trainer
from millrace.training.precision import autocast
from millrace.training.segment import build_trainer

_STEPS = 6
"""Of a short training."""


def builds(case: Case) -> None:
    """The same configuration and seed build the same model under the name it is registered by."""
    name = case.definition["model"]["name"]
    spec = get_model(name)
    require(isinstance(spec, ModelSpec), f"expected a ModelSpec, got {spec!r}")
    require(spec.name == name, f"ModelSpec.name is {spec.name!r}, it is registered as {name!r}")
    is_settings = isinstance(spec.config, type) and issubclass(spec.config, Settings)
    require(is_settings, "ModelSpec.config is not a class of millrace.config.Settings")
    made = (build_trainer(case.definition, case.files, 0, ALONE) for _ in range(2))
    (one, defined), (other, again) = made
    require(one.parameters > 0, "the model has no parameters")
    require(_same_weights(one, other), "another model of the same seed has other weights")
    hashes = [run_hash.digest(definition) for definition in (defined, again)]
    require(len(set(hashes)) == 1, "opening the same samples twice gives two run hashes")


def forecast_fits_the_target(case: Case) -> None:
    """A forecast is finite and has the shape of the target."""
    trainer = case.trainer()
    batch = samples_of(trainer)
    forecast, (wanted, _) = _forecast(trainer, batch), target(batch)
    require(
        forecast.shape == wanted.shape,
        f"the forecast has the shape {tuple(forecast.shape)}, the target {tuple(wanted.shape)}",
    )
    require(is_finite(forecast), "the forecast has values that are infinite or NaN")


def gives_a_loss_per_sample(case: Case) -> None:
    """The loss is one finite number for each sample, whatever the others are."""
    trainer = case.trainer()
    batch = samples_of(trainer)
    with torch.no_grad():
        loss_B, alone_B = (
            trainer.spec.loss(trainer.module, one, trainer.config.loss)
            for one in (batch, samples_of(trainer, 1))
        )
    require(
        loss_B.shape == batch.weight_B.shape,
        f"the loss has the shape {tuple(loss_B.shape)}, expected {tuple(batch.weight_B.shape)}: one loss "
        "for each sample, the engine averages",
    )
    require(is_finite(loss_B), f"the loss is not finite: {loss_B.tolist()}")
    require(
        torch.allclose(loss_B[:1], alone_B, rtol=1e-4),
        f"the first sample has the loss {float(loss_B[0]):.6g} among others and {float(alone_B[0]):.6g} "
        "alone: do not average over the samples or normalise by them",
    )


def every_parameter_learns(case: Case) -> None:
    """Every parameter that is trained has a finite gradient that is not zero everywhere."""
    trainer = case.trainer()
    largest = {n: 0.0 for n, p in trainer.module.named_parameters() if p.requires_grad}
    for name in largest:
        trainer.module.get_parameter(name).register_hook(partial(_note, largest, name))
    _train(trainer, _STEPS)  # layers that begin as zero let nothing through in the first
    broken = [n for n, value in largest.items() if not math.isfinite(value)]
    require(not broken, f"gradient not finite: {listed(broken)}")
    unused = [n for n, value in largest.items() if not value]
    require(
        not unused,
        f"no gradient: {listed(unused)}; the loss does not depend on it: remove it or use it",
    )


def no_hidden_state(case: Case) -> None:
    """A forecast depends on weights and batch: not on what the model saw, nor on other samples."""
    trainer = case.trainer()
    batch = samples_of(trainer)
    first, axis = _forecast(trainer, batch), target(batch)[1].index("B")
    require(torch.equal(first, _forecast(trainer, batch)), "another second forecast of a batch")
    alone = _forecast(trainer, samples_of(trainer, 1))
    require(
        torch.allclose(first.narrow(axis, 0, 1), alone, rtol=1e-4, atol=1e-5),
        "other samples show in the forecast of the first: the layout would decide the results",
    )
    before = {n: b.clone() for n, b in trainer.module.named_buffers()}
    trainer.spec.loss(trainer.module.train(), batch, trainer.config.loss).sum().backward()
    changed = [n for n, b in trainer.module.named_buffers() if not torch.equal(b, before[n])]
    require(
        not changed,
        f"buffers change in training: {listed(changed)}; ranks would have different ones: take layers "
        "without running statistics",
    )
    require(torch.equal(first, _forecast(trainer, batch)), "training without a step shows")


def survives_a_file(case: Case) -> None:
    """A model that is saved and loaded again gives the same forecast, bit by bit."""
    trainer, other = case.trainer(seed=0), case.trainer(seed=1)
    other.load(_through_a_file(case, trainer))
    require(_same_weights(trainer, other), "the loaded model has other weights")
    batch = samples_of(trainer)
    require(
        torch.equal(_forecast(trainer, batch), _forecast(other, batch)),
        "the loaded model gives another forecast: what it computes with is not among its parameters and "
        "buffers",
    )


def resumes_bitwise(case: Case) -> None:
    """A run that was stopped goes on bit by bit as if it had not been."""
    whole, stopped, again = (case.trainer() for _ in range(3))
    _train(whole, _STEPS)
    _train(stopped, 2)
    stopped.validation_loss()  # it leaves no trace
    torch.manual_seed(99)
    again.load(_through_a_file(case, stopped))
    _train(again, _STEPS)
    require(
        _same_weights(whole, again),
        "the resumed run has other weights: does the model draw random numbers of its own, or keep "
        "something from step to step?",
    )


def ranks_agree(case: Case) -> None:
    """One rank and two have the same losses and gradients, to rounding."""
    job = {"definition": case.definition, "files": case.files, "plugins": list(case.plugins)}
    alone = _steps_on_rank(job, ALONE)
    together = on_ranks(2, _steps_on_rank, job, directory=case.directory)
    for key, tolerance in (("loss", 1e-5), ("gradient norm", 1e-4), ("validation loss", 1e-5)):
        for step, (one, two) in enumerate(zip(alone[key], together[key], strict=True), start=1):
            require(
                math.isclose(one, two, rel_tol=tolerance),
                f"{key} {step} is {one:.7g} on one rank and {two:.7g} on two: does the model draw random "
                "numbers of its own, such as dropout (draw in ModelSpec.add_noise), or look at other "
                "samples?",
            )


def half_precision_agrees(case: Case) -> None:
    """The loss in bfloat16 is near that in float32, and has finite gradients."""
    trainer = case.trainer()
    batch, losses = samples_of(trainer), {}
    for precision in ("float32", "bfloat16"):
        with autocast(precision, ALONE.device):
            loss_B = trainer.spec.loss(trainer.module, batch, trainer.config.loss)
        losses[precision] = float(loss_B.detach().float().mean())
        require(is_finite(loss_B), f"the loss in {precision} is not finite: {loss_B.tolist()}")
    loss_B.sum().backward()
    gradients = {n: p.grad for n, p in trainer.module.named_parameters() if p.grad is not None}
    broken = [n for n, gradient in gradients.items() if not is_finite(gradient)]
    require(not broken, f"gradient in bfloat16 not finite: {listed(broken)}")
    single, half = losses.values()
    require(
        math.isclose(single, half, rel_tol=0.1),
        f"the loss is {half:.4g} in bfloat16 and {single:.4g} in float32: compute what loses digits, "
        "such as differences and long sums, in float32",
    )


def double_precision_agrees(case: Case) -> None:
    """A forecast in float32 is that in float64 to rounding."""
    single, double = case.trainer(), case.trainer()
    batch = samples_of(single)
    for tensor in (*double.module.parameters(), *double.module.buffers()):
        tensor.data = _in_double(tensor.data)
    rough, exact = _forecast(single, batch), _forecast(double, _in_double(batch))
    require(
        exact.dtype == torch.float64,
        f"a model and a batch in float64 give a forecast in {exact.dtype}: something is cast on the way",
    )
    require(
        torch.allclose(rough.double(), exact, rtol=1e-4, atol=1e-5),
        f"forecasts in float32 and float64 differ by up to {float((rough - exact).abs().max()):.3g}",
    )


def loss_falls(case: Case) -> None:
    """A short training on one batch lowers its loss."""
    trainer = case.trainer(schedule={})
    batch = next(trainer.batches(0))
    first, *_, last = (float(trainer.train_step(batch)) for _ in range(5 * _STEPS))
    require(
        last < first - 0.01 * abs(first),
        f"the loss of a batch is {first:.4g} at first and {last:.4g} after {5 * _STEPS} steps on it",
    )


def loads_by_itself(case: Case) -> None:
    """A checkpoint alone, without samples or receipt, gives the same forecasts as the model in it."""
    _require_application(case)
    trainer, model = _loaded_alone(case)
    batch = samples_of(trainer, 1)
    module = model.module_for(None)  # it was built when it was loaded
    with torch.no_grad():
        found = finite(model.spec.predict(module, batch))
    same = torch.equal(_forecast(trainer, batch), found)
    require(same, "the model that is loaded from its checkpoint gives other forecasts")


def exports(case: Case) -> None:
    """A program of a checkpoint, if it can be exported, forecasts the same for any number of samples."""
    _require_application(case)
    _, model = _loaded_alone(case)
    try:
        program = model.program()
        run = traced(program).module()
    except NotExportable as error:  # such as those of libraries that cannot be traced
        raise NotTried(str(error)) from None
    checked(program, run, model.spec.name, "program")


def _require_application(case: Case) -> None:
    if case.kind.application is None:
        raise NotTried(
            f"samples of {case.kind.name} have no `application`, which loads checkpoints"
        )


def _loaded_alone(case: Case) -> tuple[Trainer, LoadedModel]:
    """A model that is not trained, and the same loaded from a checkpoint that lies alone."""
    trainer, _ = build_trainer(case.definition, case.files, 0, ALONE)
    recipe = recipe_of(case.kind.name, case.definition, trainer.dataset)
    require(
        "samples" in recipe,
        f"{type(trainer.dataset).__name__} has no method `recipe`, which says what of its sample files a "
        "checkpoint holds; see millrace.data.recipe",
    )
    alone = case.directory / "alone"
    alone.mkdir(exist_ok=True)
    torch.save({**trainer.state(), "recipe": recipe}, alone / "model.ckpt")
    return trainer, load(alone / "model.ckpt", device="cpu")


OF_MODELS = (
    builds,
    forecast_fits_the_target,
    gives_a_loss_per_sample,
    every_parameter_learns,
    no_hidden_state,
    survives_a_file,
    loads_by_itself,
    exports,
    resumes_bitwise,
    ranks_agree,
    half_precision_agrees,
    double_precision_agrees,
    loss_falls,
)


def _note(largest: dict[str, float], name: str, gradient: Tensor) -> None:
    largest[name] = max(float(gradient.abs().max().nan_to_num(math.inf)), largest[name])


@torch.no_grad()
def _forecast(trainer: Trainer, batch: Any) -> Tensor:
    return trainer.spec.predict(trainer.module.eval(), batch)


def _train(trainer: Trainer, steps: int) -> None:
    for _ in advance(trainer, steps):
        pass


def _through_a_file(case: Case, trainer: Trainer) -> Any:
    path = case.directory / "state.pt"
    torch.save(trainer.state(), path)
    return torch.load(path, weights_only=True)


def _same_weights(one: Trainer, other: Trainer) -> bool:
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def _in_double(value: Any) -> Any:
    """Tensors of a batch, or one of a model, in double precision."""
    if isinstance(value, Tensor):
        if value.is_complex():
            return value.to(torch.complex128)
        return value.double() if value.is_floating_point() else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _in_double(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def _steps_on_rank(job: Mapping[str, Any], ranks: Ranks) -> dict[str, list[float]]:
    # Norms of gradients as well: clipping and Adam hide gradients that are wrong by a factor.
    load_plugins(job["plugins"])
    trainer, _ = build_trainer(job["definition"], job["files"], 0, ranks)
    losses, norms = [], []
    for _, loss in advance(trainer, _STEPS):
        losses.append(ranks.sum(float(loss))[0])
        norms.append(float(trainer.gradient_norm))
    validation = [trainer.validation_loss()]
    return {"loss": losses, "gradient norm": norms, "validation loss": validation}
