"""Training one expert from files to package files, in one process or several; every stage resumes where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import AlreadyExistsError, UsageError
from common.modeling.loading import checkpoint_dtype, expert_pairs, load_pair
from common.modeling.model import CausalLM
from common.progress import ProgressSink, silent
from owner_client.data.mixing import MixedSequences
from owner_client.training.distributed import World, joined, lost_processes, matching, reshard, shard
from owner_client.training.hardware import threads_per_process
from owner_client.training.inputs import RunInputs
from owner_client.training.launch import environment_world, run_processes
from owner_client.training.measuring import Perplexity
from owner_client.training.metrics import Cost
from owner_client.training.package import write_package_files
from owner_client.training.prepare import Plan, measured, prepare, sequences_of
from owner_client.training.rendezvous import publish_plan, serve_store
from owner_client.training.routers import collect_inputs, refit_rows
from owner_client.training.settings import TrainSettings
from owner_client.training.trainer import Trainer

__all__ = ["TrainResult", "train_expert", "train_planned"]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a finished run hands on."""

    files: Path
    """The folder with parts, router rows and ``privacy.json``."""
    summary: dict[str, str | int]
    """For the manifest: settings only, nothing that was measured on private text."""
    perplexity: dict[str, dict[str, Perplexity]]
    """By text (``"private"`` held out, ``"public"`` held out) and model (``"anchor"``, ``"pair"``); for the owner's eyes."""
    cost: Cost | None
    """What the steps of this call cost; None when the run had been finished before. For the owner's eyes."""


def train_expert(
    anchor_folder: Path,
    data: Sequence[str],
    *,
    run_dir: Path,
    out_dir: Path,
    settings: TrainSettings,
    text_field: str = "text",
    progress: ProgressSink = silent,
    fresh: bool = False,
    processes: int = 1,
    quiet: bool = True,
) -> TrainResult:
    """Train an expert on ``data`` against the frozen anchor and write the package's files.

    Under ``torchrun`` the first process calls this, and the others :func:`owner_client.training.worker.follow`.

    Args:
        anchor_folder: a published anchor, already verified.
        data: files, folders and globs of private text.
        run_dir: holds the run's tokens, checkpoints and metrics; a run that was stopped there goes on, with any number of processes.
        out_dir: must not exist; appears whole at the end.
        settings: of the run.
        text_field: of the private text.
        progress: hears of every stage in this process.
        fresh: start over whatever ``run_dir`` holds.
        processes: start so many on this machine to train together, one per GPU.
        quiet: let started processes show no progress.

    Raises:
        AlreadyExistsError: ``out_dir`` exists, or ``run_dir`` holds a run with other settings, data or anchor.
        ArchitectureError, LayoutError, SafetensorsError: the anchor cannot be used.
        DataError, TextFieldError, MissingExtraError: the data cannot be used.
        InterruptedByUserError: Ctrl-C or SIGTERM during training; the same call goes on from there.
        LostProcessError: one of several processes was killed, crashed or does not answer.
        NonFiniteError: training diverged.
        StorageError: the disk is full or not writable.
        UsageError: settings that do not fit the machine or the anchor.
    """
    if out_dir.exists():
        raise AlreadyExistsError(f"{out_dir} exists already; choose another place or remove it.")
    named = environment_world()
    _check_split(settings, processes if named is None else named.size, launched=named is not None and processes > 1)
    plan = prepare(
        anchor_folder,
        data,
        run_dir=run_dir,
        out_dir=out_dir,
        settings=settings,
        text_field=text_field,
        progress=progress,
        fresh=fresh,
    )
    if processes > 1:
        return _launch(plan, processes, quiet=quiet)
    if named is not None:
        publish_plan(plan.to_json())
    return train_planned(plan, progress)


def _check_split(settings: TrainSettings, processes: int, *, launched: bool) -> None:
    if launched:
        raise UsageError("Under torchrun the processes are started already; leave out --nproc.")
    if processes < 1 or settings.batch_size % processes:
        raise UsageError(
            f"A step of {settings.batch_size} sequences cannot be divided evenly over {processes} processes; "
            "change batch_tokens or seq_len."
        )


def _launch(plan: Plan, processes: int, *, quiet: bool) -> TrainResult:
    """Train in processes of this machine that are started for it."""
    if plan.settings.device == "cuda":
        if processes > torch.cuda.device_count():
            raise UsageError(f"There are {torch.cuda.device_count()} CUDA devices, not {processes}.")
        torch.cuda.empty_cache()
    with serve_store() as (store_variables, publish):
        publish(plan.to_json())
        variables = {"OMP_NUM_THREADS": str(threads_per_process(processes)), **store_variables}
        told = run_processes(
            ["-m", "owner_client.training.worker", *(["--quiet"] if quiet else [])], processes=processes, variables=variables
        )
    return result_from_json(plan, told)


def train_planned(plan: Plan, progress: ProgressSink) -> TrainResult:
    """Train a prepared run in the world that the environment names; the first process writes the package's files.

    Raises:
        ElmgroveError: as :func:`train_expert`.
    """
    settings, inputs = plan.settings, plan.inputs()
    dtype = torch.float32 if settings.dtype == "float32" else torch.bfloat16
    with joined(settings.device) as world, lost_processes():
        model = _model(plan, dtype, world)
        trainer = _trainer(model, plan, inputs, progress, world)
        cost = trainer.run()
        _refit(model, plan, inputs, progress)
        after = measured(model, inputs, settings, world)
        trainer.gather()
        if world.first:
            write_package_files(model, plan.out_dir, dtype=checkpoint_dtype(plan.anchor))
    return _result(plan, after, cost)


def _model(plan: Plan, dtype: torch.dtype, world: World) -> CausalLM:
    # Several processes load on the CPU, and each keeps only its part on its device.
    place = world.device if world.size == 1 else "cpu"
    rank, seed = plan.settings.rank, plan.settings.seed
    model = load_pair(plan.anchor, rows_LH=plan.rows(), rank=rank, seed=seed, dtype=dtype, device=place)
    for pair in expert_pairs(model):
        pair.row.requires_grad_(plan.settings.router_train)
    model.checkpoint_layers = plan.settings.checkpoint_layers
    if plan.settings.compile:
        model.compile_for_training()
    shard(model, world)
    return model


def _refit(model: CausalLM, plan: Plan, inputs: RunInputs, progress: ProgressSink) -> None:
    """Fit the rows of the trained pair again, where there is public text to fit them against; all processes do the same."""
    settings = plan.settings
    if settings.router != "discriminant" or not settings.router_refit or inputs.public is None:
        return
    progress("Fitting the router again", 0, 1, "fits")
    private, public = (
        collect_inputs(model, sequences_of(source, settings), tokens=settings.router_tokens, seq_len=settings.seq_len)
        for source in (inputs.private, inputs.public)
    )
    rows = refit_rows(private, public, layers=model.config.num_layers)
    reshard(model)
    with torch.no_grad():
        for pair, row in zip(expert_pairs(model), rows, strict=True):
            pair.row.copy_(matching(row.to(model.embed_tokens.weight.device), pair.row))
    progress("Fitting the router again", 1, 1, "fits")


def _trainer(model: CausalLM, plan: Plan, inputs: RunInputs, progress: ProgressSink, world: World) -> Trainer:
    settings = plan.settings
    total = settings.total_steps(inputs.private.num_tokens)
    mixed = MixedSequences(
        sequences_of(inputs.private, settings),
        None if inputs.public is None else sequences_of(inputs.public, settings),
        public_share=settings.public_share,
        seed=settings.seed,
        total=total * settings.batch_size,
    )

    def heldout(model: CausalLM) -> dict[str, float]:
        return {text: perplexity.nats for text, perplexity in measured(model, inputs, settings, world).items()}

    return Trainer(model, mixed, settings, total_steps=total, run_dir=plan.run_dir, progress=progress, heldout=heldout, world=world)


def _result(plan: Plan, after: dict[str, Perplexity], cost: Cost | None) -> TrainResult:
    before = plan.anchor_perplexity()
    perplexity = {text: {"anchor": before[text], "pair": after[text]} for text in after}
    return TrainResult(plan.out_dir, _summary(plan), perplexity, cost)


def result_to_json(result: TrainResult) -> dict[str, Any]:
    """What was measured, for the process that started this one."""
    pair = {text: asdict(row["pair"]) for text, row in result.perplexity.items()}
    return {"perplexity": pair, "cost": None if result.cost is None else asdict(result.cost)}


def result_from_json(plan: Plan, told: dict[str, Any]) -> TrainResult:
    """Read :func:`result_to_json`."""
    after = {text: Perplexity(**value) for text, value in told["perplexity"].items()}
    return _result(plan, after, None if told["cost"] is None else Cost(**told["cost"]))


def _summary(plan: Plan) -> dict[str, str | int]:
    settings = plan.settings
    summary: dict[str, str | int] = {
        "router": settings.router,
        "router_trained": "yes" if settings.router_train else "no",
        "router_refitted": "yes" if settings.router_refit and settings.router == "discriminant" else "no",
        "public_share": f"{settings.public_share:g}",
        "steps": settings.total_steps(plan.inputs().private.num_tokens),
        "batch_tokens": settings.batch_tokens,
        "sequence_length": settings.seq_len,
        "optimizer": settings.optimizer,
        "learning_rate": f"{settings.lr:.3g}",
        "precision": settings.dtype,
    }
    # Which step was best was measured on private text, so only the setting is told.
    return summary | ({"early_stopping": f"after {settings.patience} measurements"} if settings.patience else {})
