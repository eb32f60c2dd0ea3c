"""`make demo`: a whole consortium on one machine, each role a process of its own, every command shown as a person would type it.

The demo drives the three installed command lines and nothing else: what it prints can be copied into a shell.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.console import emit, format_seconds
from common.errors import ElmgroveError, UsageError

CONSORTIUM = "demo"
PUBLIC = "public"
PRESET = "nano"
EXPERT_TOKENS = 262_144  # per owner, public share included; enough to see it learn, half a minute of two cores
BATCH_TOKENS = 2048  # small steps: more of them in the same time
MAX_EVAL_TOKENS = 20_000  # tokens per domain; half a minute for six models and four domains
SERVER_START_SECONDS = 30.0
_WIDEST = 400  # characters of a command that are shown


class StepFailedError(ElmgroveError):
    """A command of the demo ended with an error."""


@dataclass
class Domain:
    """One owner: its name is its domain's."""

    name: str
    train: Path
    valid: Path


@dataclass
class Demo:
    """The folders, the shell and the clock of one run."""

    out: Path
    domains: list[Domain]
    public: Domain
    port: int
    anchor_tokens: int | None
    expert_tokens: int
    seconds: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The coordinator's folder."""
        return self.out / "coordinator"

    def owner_home(self, domain: Domain) -> Path:
        """One owner's folder."""
        return self.out / "owners" / domain.name

    @property
    def log(self) -> Path:
        """The transparency log's files."""
        return self.home / "log"

    @property
    def root(self) -> Path:
        """The consortium's root certificate."""
        return self.home / "certs" / "root.pem"


def main() -> None:
    """Parse the options, run the demo, and leave no process behind."""
    options = _options()
    try:
        demo = _prepare(options)
        _run(demo)
    except KeyboardInterrupt:
        emit("\nStopped. Everything so far is in the output folder; run the demo again to start over.", error=True)
        sys.exit(130)
    except ElmgroveError as error:
        emit(f"\nThe demo stopped: {error}", error=True)
        sys.exit(error.exit_code)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Run a whole Elmgrove consortium on this machine.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-run"), help="folder for everything the demo makes; replaced if a demo made it"
    )
    parser.add_argument("--data", type=Path, help="folder with NAME.train.jsonl.gz and NAME.valid.jsonl.gz files; `public` is the anchor's")
    parser.add_argument("--anchor-tokens", type=int, help="tokens the anchor is trained on (default: the preset's)")
    parser.add_argument("--expert-tokens", type=int, default=EXPERT_TOKENS, help="tokens each expert is trained on (default: %(default)s)")
    return parser.parse_args()


# --- preparation ------------------------------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> Demo:
    marker = options.out / ".elmgrove-demo"
    if options.out.exists():
        if not marker.exists():
            raise UsageError(f"{options.out} exists and was not made by the demo; choose another folder with DEMO_OUT=DIR.")
        shutil.rmtree(options.out)
    options.out.mkdir(parents=True)
    marker.touch()
    public, domains = _domains(options.data or _gather(options.out / "data"))
    return Demo(
        out=options.out, public=public, domains=domains, port=_free_ports(),
        anchor_tokens=options.anchor_tokens, expert_tokens=options.expert_tokens,
    )  # fmt: skip


def _gather(folder: Path) -> Path:
    _title("Text", "gathering real text that is already on this machine")
    subprocess.run([sys.executable, str(Path(__file__).with_name("corpus.py")), str(folder)], check=True)
    return folder


def _domains(folder: Path) -> tuple[Domain, list[Domain]]:
    found = [
        Domain(name=path.name.removesuffix(".train.jsonl.gz"), train=path, valid=path.with_name(path.name.replace(".train.", ".valid.")))
        for path in sorted(folder.glob("*.train.jsonl.gz"))
    ]
    missing = [domain.valid.name for domain in found if not domain.valid.exists()]
    if missing:
        raise UsageError(f"{folder} lacks {', '.join(missing)}.")
    public = [domain for domain in found if domain.name == PUBLIC]
    if not public or len(found) < 2:
        raise UsageError(
            f"{folder} must hold {PUBLIC}.train.jsonl.gz and at least one other NAME.train.jsonl.gz, each with its .valid file."
        )
    return public[0], [domain for domain in found if domain.name != PUBLIC]


def _free_ports() -> int:
    """A port P such that P and P + 1 are free on the loopback address; the second is for enrolment."""
    for port in range(7420, 7920, 10):
        try:
            for candidate in (port, port + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", candidate))
        except OSError:
            continue
        return port
    raise UsageError("No free port was found between 7420 and 7920.")


# --- the story --------------------------------------------------------------------------------------------------------


def _run(demo: Demo) -> None:
    started = time.monotonic()
    try:
        _found(demo)
        with _serving(demo):
            _train_experts(demo)
            _assemble_first(demo)
            _withdraw(demo)
        _audit(demo)
        _evaluate(demo)
        _show_use(demo)
    finally:
        _stop_children(demo)
    _summary(demo, time.monotonic() - started)


def _found(demo: Demo) -> None:
    _title("Operator", "founds the consortium, trains a small public anchor and publishes it")
    home = str(demo.home)
    coordinator(demo, "init", home, "--name", CONSORTIUM, "--host", "127.0.0.1", "--port", str(demo.port))
    checkpoint = str(demo.out / "anchor-checkpoint")
    tokens = ("--tokens", str(demo.anchor_tokens)) if demo.anchor_tokens else ()
    data = ("--data", str(demo.public.train))
    coordinator(demo, "anchor", "train", *data, "--preset", PRESET, *tokens, "--out", checkpoint, step="anchor train")
    coordinator(
        demo, "anchor", "publish", checkpoint, "--name", "base", "--public-sample", str(demo.public.train),
        "--licence", "for demonstration only", "--provenance", "trained by the demo", "--home", home,
        step="anchor publish",
    )  # fmt: skip


def _train_experts(demo: Demo) -> None:
    _title("Owners", f"{len(demo.domains)} owners join, train on their own text in their own folders, review and push")
    invitations = {domain.name: coordinator(demo, "invite", domain.name, "--home", str(demo.home)).strip() for domain in demo.domains}
    workers = min(len(demo.domains), 2 * (os.cpu_count() or 1))
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_be_owner, demo, domain, invitations[domain.name]) for domain in demo.domains]
        for job in concurrent.futures.as_completed(jobs):
            job.result()
    demo.seconds["owners"] = round(time.monotonic() - began, 1)
    coordinator(demo, "experts", "--home", str(demo.home))


def _be_owner(demo: Demo, domain: Domain, invitation: str) -> None:
    home = ("--home", str(demo.owner_home(domain)))
    owner(demo, domain, "join", invitation, *home)
    owner(demo, domain, "pull", *home)
    data = ("--data", str(domain.train))
    tokens = ("--tokens", str(demo.expert_tokens), "--batch-tokens", str(BATCH_TOKENS))
    owner(demo, domain, "train", *data, "--name", domain.name, *tokens, *home, step=f"train {domain.name}")
    owner(demo, domain, "review", domain.name, *home, keep=6)
    owner(demo, domain, "push", domain.name, "--yes", *home, step=f"push {domain.name}")


def _assemble_first(demo: Demo) -> None:
    _title("Operator", "assembles the mixture, and each owner's pair (anchor and one expert) for comparison")
    home = ("--home", str(demo.home))
    coordinator(demo, "assemble", str(demo.out / "models" / "all"), *home, step="assemble")
    for domain in demo.domains:
        coordinator(demo, "assemble", str(demo.out / "models" / f"pair-{domain.name}"), "--include", domain.name, *home, quiet=True)


def _withdraw(demo: Demo) -> None:
    leaver = demo.domains[0]
    _title("Owner", f"{leaver.name} withdraws its expert; the operator assembles again without it")
    owner(demo, leaver, "withdraw", leaver.name, "--reason", "the demo shows how", "--yes", "--home", str(demo.owner_home(leaver)))
    coordinator(demo, "assemble", str(demo.out / "models" / f"without-{leaver.name}"), "--home", str(demo.home), step="assemble again")


def _audit(demo: Demo) -> None:
    _title("Auditor", "trusts nobody: one root certificate, the log's files, the model's files, no network")
    root = ("--root", str(demo.root))
    audit(demo, "log", str(demo.log), *root)
    for domain in demo.domains[:1]:
        audit(demo, "package", str(demo.owner_home(domain) / "outbox" / f"{domain.name}-v1"), *root, "--log", str(demo.log))
    audit(demo, "model", str(demo.out / "models" / "all"), "--log", str(demo.log), *root, step="audit model")
    audit(demo, "model", str(demo.out / "models" / f"without-{demo.domains[0].name}"), "--log", str(demo.log), *root)


def _evaluate(demo: Demo) -> None:
    _title("Operator", "measures every model on the same held-out text of every domain")
    models = [f"anchor={demo.out / 'anchor-checkpoint'}"]
    models += [f"pair-{domain.name}={demo.out / 'models' / f'pair-{domain.name}'}" for domain in demo.domains]
    models += [f"all={demo.out / 'models' / 'all'}", f"{_without(demo)}={demo.out / 'models' / _without(demo)}"]
    data = [part for domain in (demo.public, *demo.domains) for part in ("--data", f"{domain.name}={domain.valid}")]
    outputs = ("--report", str(demo.out / "report.html"), "--json-out", str(demo.out / "evaluation.json"))
    coordinator(demo, "evaluate", *models, *data, "--max-tokens", str(MAX_EVAL_TOKENS), *outputs, step="evaluate", keep=60)


def _without(demo: Demo) -> str:
    return f"without-{demo.domains[0].name}"


def _show_use(demo: Demo) -> None:
    _title("Anyone", "uses the model: with Elmgrove, leaving an expert out at run time; and with stock transformers alone")
    model = str(demo.out / "models" / "all")
    prompt = _prompt(demo.domains[-1].valid)
    coordinator(demo, "generate", model, "--prompt", prompt, "--max-new-tokens", "24", "--temperature", "0", keep=12)
    leave_out = ("--exclude", demo.domains[-1].name)
    coordinator(demo, "generate", model, "--prompt", prompt, *leave_out, "--max-new-tokens", "24", "--temperature", "0", keep=12)
    script = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"t = T.from_pretrained({model!r}); m = M.from_pretrained({model!r}); "
        "i = t('The licence', return_tensors='pt'); "
        "print(type(m).__name__, '|', t.decode(m.generate(i.input_ids, max_new_tokens=12, do_sample=False)[0]))"
    )
    _shell(demo, [sys.executable, "-c", script], shown="python -c '... AutoModelForCausalLM.from_pretrained(...).generate(...)'", keep=4)


def _prompt(valid: Path) -> str:
    import gzip

    with gzip.open(valid, "rt", encoding="utf-8") as rows:
        text = " ".join(json.loads(next(rows))["text"].split())
    return text[:60].rsplit(" ", 1)[0]


# --- the end ----------------------------------------------------------------------------------------------------------


def _summary(demo: Demo, seconds: float) -> None:
    report = json.loads((demo.out / "evaluation.json").read_text(encoding="utf-8"))
    perplexity: dict[str, dict[str, float]] = {model: {} for model in report["models"]}
    for score in report["scores"]:
        perplexity[score["model"]][score["domain"]] = round(score["perplexity"], 2)
    summary = {
        "model": str(demo.out / "models" / "all"),
        "model_without": str(demo.out / "models" / _without(demo)),
        "packages": {domain.name: str(demo.owner_home(domain) / "outbox" / f"{domain.name}-v1") for domain in demo.domains},
        "root": str(demo.root),
        "log": str(demo.log),
        "report": str(demo.out / "report.html"),
        "perplexity": perplexity,
        "geometric_mean": {model: round(value, 2) for model, value in report["geometric_means"].items()},
        "seconds": {**demo.seconds, "total": round(seconds, 1)},
    }
    (demo.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    out = demo.out
    _title("Done", f"in {format_seconds(seconds)}")
    emit(f"  the model       {out}/models/all  (an ordinary Hugging Face folder)")
    emit(f"  the report      {out}/report.html")
    emit(f"  all figures     {out}/summary.json\n")
    emit(f"Try next (the programs are in {os.path.relpath(Path(sys.executable).parent)}):")
    emit(f'  elmgrove-coordinator generate {out}/models/all --prompt "The" --exclude {demo.domains[0].name}')
    emit(f"  elmgrove-audit model {out}/models/all --log {demo.log} --root {demo.root}")
    emit(f"  elmgrove-coordinator log --home {demo.home}")
    emit("  make demo DATA=DIR      with your own NAME.train.jsonl.gz and NAME.valid.jsonl.gz files")


# --- processes --------------------------------------------------------------------------------------------------------


def coordinator(demo: Demo, *arguments: str, step: str = "", keep: int = 8, quiet: bool = False) -> str:
    """Run ``elmgrove-coordinator`` as the operator would; returns what it printed."""
    return _shell(demo, [_program("elmgrove-coordinator"), *arguments], step=step, keep=keep, quiet=quiet)


def owner(demo: Demo, domain: Domain, *arguments: str, step: str = "", keep: int = 3) -> str:
    """Run ``elmgrove-owner`` as one owner would, with one compute thread, since owners run side by side."""
    return _shell(demo, [_program("elmgrove-owner"), *arguments], step=step, keep=keep, who=domain.name, threads=1)


def audit(demo: Demo, *arguments: str, step: str = "", keep: int = 16) -> str:
    """Run ``elmgrove-audit`` as the auditor would."""
    return _shell(demo, [_program("elmgrove-audit"), *arguments], step=step, keep=keep)


def _program(name: str) -> str:
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        raise UsageError(f"{name} is not installed beside this Python; run the demo with make demo.")
    return str(path)


def _shell(
    demo: Demo,
    command: Sequence[str],
    *,
    step: str = "",
    keep: int = 8,
    quiet: bool = False,
    who: str = "",
    threads: int = 0,
    shown: str = "",
) -> str:
    """Run a command and show it: alone, before it runs and with its progress; side by side with others, whole when it is done."""
    line = shown or shlex.join([Path(command[0]).name, *command[1:]])
    alone = not (who or quiet)
    if alone:
        _show_command(line, who)
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    progress = None if alone and sys.stderr.isatty() else subprocess.PIPE
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=progress, stdin=subprocess.DEVNULL, env=environment)
    with demo.lock:
        demo.children.append(process)
    output, complaints = process.communicate()
    seconds = time.monotonic() - began
    if step:
        demo.seconds[step] = round(seconds, 1)
    text, errors = output.decode("utf-8", "replace"), (complaints or b"").decode("utf-8", "replace")
    if process.returncode:
        raise StepFailedError(f"{line} ended with exit code {process.returncode}.\n{errors.strip()[-2000:]}")
    if not quiet:
        with demo.lock:
            if not alone:
                _show_command(line, who)
            _show_output(text, seconds, keep)
    return text


def _show_command(line: str, who: str) -> None:
    prefix = f"[{who}] " if who else ""
    emit(f"  {prefix}$ {line if len(line) < _WIDEST else line[:180] + ' ... ' + line[-120:]}")


def _show_output(text: str, seconds: float, keep: int) -> None:
    lines = [row for row in text.rstrip().splitlines() if row.strip()]
    for row in lines[:keep]:
        emit(f"      {row[:200]}")
    if len(lines) > keep:
        emit(f"      ... ({len(lines) - keep} more lines)")
    if seconds >= 2:
        emit(f"      ({seconds:.0f} s)")


@contextmanager
def _serving(demo: Demo) -> Iterator[None]:
    _title("Operator", "starts the coordinator")
    command = [_program("elmgrove-coordinator"), "serve", "--home", str(demo.home)]
    emit(f"  $ elmgrove-coordinator serve --home {demo.home} &")
    with (demo.out / "coordinator.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    demo.children.append(server)
    _await_port(server, demo)
    try:
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=20)


def _await_port(server: subprocess.Popen[bytes], demo: Demo) -> None:
    deadline = time.monotonic() + SERVER_START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StepFailedError(f"the coordinator did not start:\n{(demo.out / 'coordinator.log').read_text(errors='replace')[-1000:]}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", demo.port)) == 0:
                return
        time.sleep(0.1)
    raise StepFailedError("the coordinator did not answer in time.")


def _stop_children(demo: Demo) -> None:
    for process in demo.children:
        if process.poll() is None:
            process.terminate()
    for process in demo.children:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()


def _title(role: str, text: str) -> None:
    emit(f"\n== {role} {text}")


if __name__ == "__main__":
    main()
