"""``elmgrove-coordinator tune-router``: train the router rows of an assembled model, and nothing else, on public text."""

from __future__ import annotations

from pathlib import Path

import click

from common.console import TerminalProgress, emit, emit_json, table
from common.errors import UsageError
from coordinator.cli.options import examples, home_option, json_option, named_values, opened, passphrase_option, quiet_option
from coordinator.config import Home

__all__ = ["command"]


@click.command(
    name="tune-router",
    epilog=examples(
        "elmgrove-coordinator tune-router models/all --out models/tuned --proxies law=law.proxies.jsonl --proxies code=code.proxies.jsonl",
        "elmgrove-coordinator tune-router models/all --out models/tuned --data public=public/ --data law=public-law.jsonl.gz --steps 500",
    ),
)
@click.argument("model", type=click.Path(path_type=Path), metavar="MODEL")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The tuned model's folder; must not exist.")
@click.option(
    "--proxies", multiple=True, metavar="EXPERT=FILE", help="The list that an owner made with 'elmgrove-owner proxies'; one per expert."
)
@click.option(
    "--data",
    multiple=True,
    metavar="NAME=FILES",
    help="Public text. NAME is 'public', or the expert whose proxies these texts are; repeat a name for more. "
    "[default for public: the anchor's sample]",
)
@click.option("--text-field", default="text", show_default=True, metavar="FIELD", help="Field or column that holds the text.")
@click.option("--steps", type=int, default=200, show_default=True, help="Optimizer steps.")
@click.option("--batch-tokens", type=int, default=8192, show_default=True, metavar="TOKENS", help="Tokens in one step.")
@click.option("--seq-len", type=int, default=256, show_default=True, metavar="TOKENS", help="Length of one sequence.")
@click.option("--lr", type=float, metavar="RATE", help="Peak learning rate. [default: 5e-3 at width 128, falling with its square root]")
@click.option("--top-k", type=int, metavar="N", help="Experts active while tuning. [default: the model's own number, at least 2]")
@click.option("--tune-public", is_flag=True, help="Tune the public row too; without it that row stays zero.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything random.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16"]),
    default="auto",
    show_default=True,
    help="Type to compute in; rows are always trained in float32.",
)
@home_option
@passphrase_option
@quiet_option
@json_option
def command(
    model: Path,
    out: Path,
    proxies: tuple[str, ...],
    data: tuple[str, ...],
    text_field: str,
    steps: int,
    batch_tokens: int,
    seq_len: int,
    lr: float | None,
    top_k: int | None,
    tune_public: bool,
    seed: int,
    device: str,
    dtype: str,
    home: Home,
    passphrase_file: Path | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Tune the router of MODEL, an assembled model, on equal parts of public text and of each expert's proxies.

    Proxies are public documents that resemble an owner's text. Every expert stays as its owner signed it. The tuned model is a folder of
    its own, signed and logged together with the proxies that it used. MODEL stays the exact opt-out: once an expert is withdrawn,
    assemble without it and tune that model.
    """
    from coordinator.compute.router_tuning import TunedRows, TuningSettings
    from coordinator.compute.tuning_run import TuningTexts, run_tuning
    from coordinator.usecases.tune_router import PublicSample, Tuning, tune_router

    settings = TuningSettings(
        steps=steps, batch_tokens=batch_tokens, seq_len=seq_len, lr=lr, top_k=top_k, tune_public=tune_public, seed=seed
    )
    texts = TuningTexts(data=_texts(data), proxies=_lists(proxies), text_field=text_field)
    progress = TerminalProgress(quiet=quiet or as_json)
    results: list[TunedRows] = []

    def tune(folder: Path, sample: PublicSample | None) -> Tuning:
        tuning, rows = run_tuning(folder, sample, texts, settings, device=device, dtype=dtype, progress=progress)
        results.append(rows)
        return tuning

    with opened(home, passphrase_file) as coordinator:
        made = tune_router(coordinator, model, out, tune=tune, progress=progress)
    losses = {"first_loss": round(results[0].first_loss, 4), "last_loss": round(results[0].last_loss, 4)}
    if as_json:
        used = [use.model_dump(mode="json") for use in made.proxies]
        emit_json({"digest": made.digest, "base": made.base, "proxies": used, "index": made.receipt.index, **losses})
        return
    emit(f"Tuned {out} from {model}: loss {losses['first_loss']:.3f} in the first step, {losses['last_loss']:.3f} in the last ones.")
    if made.proxies:
        emit(table(["expert", "proxies"], [[use.expert, use.sha256[:16]] for use in made.proxies]))
    emit(f"Digest {made.digest}, log entry {made.receipt.index}.")


def _texts(data: tuple[str, ...]) -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for name, files in named_values(data, "NAME=FILES, for example --data public=public.jsonl.gz"):
        texts.setdefault(name, []).append(files)
    return texts


def _lists(proxies: tuple[str, ...]) -> dict[str, Path]:
    lists: dict[str, Path] = {}
    for name, file in named_values(proxies, "EXPERT=FILE, for example --proxies law=law.proxies.jsonl"):
        if name in lists:
            raise UsageError(f"Two lists of proxies for {name}; a tuning takes one.")
        lists[name] = Path(file)
    return lists
