"""`build_report`: one self-contained HTML page from whatever a run has left on disk so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from safe_o2o.errors import DataError
from safe_o2o.files import storage_error, write_atomic
from safe_o2o.report import episodes as ep
from safe_o2o.report import films, gate, process, provenance, results, training
from safe_o2o.report.blocks import Section
from safe_o2o.report.closeup import CloseUp
from safe_o2o.report.run_files import RunFiles

_TEMPLATES = Path(__file__).parent / "templates"
_SUBTITLE = ("command", "algorithm", "task", "preset", "started")
CONTROL_PERIOD = 0.01  # s; the loop's period where run.json does not say


def build_report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    render: ep.Render | None = None,
    workers: int = 0,
) -> Path:
    """Write the page of a run. Partial runs are fine: a section says what is missing.

    The bytes depend on the run's files (and `render`) alone: the same files give the same page.

    Args:
        run_dir: the run's folder (`dataset`, `checkpoints`, `online`, `eval`, `deploy`, ...).
        out: the file to write; `<run_dir>/report.html` by default.
        render: makes larger pictures of an episode for the films, None where it cannot. By default
            the twin's camera, where it is installed; else the recorded pictures are shown.
        workers: processes that make the films meanwhile, where `render` is not given; 0 makes them
            here.

    Returns:
        Path of the page.

    Raises:
        DataError: there is no such folder.
        StorageError: the page cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(
            "no such run folder", where=run_dir, todo="make one with `safe-o2o demo --out FOLDER`"
        )
    out = run_dir / "report.html" if out is None else Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, out.parent) from error
    if render is not None:
        page = _page(run_dir, films.one_by_one(render))
    elif workers > 0:
        with films.in_workers(workers) as make:
            page = _page(run_dir, make)
    else:
        with CloseUp() as closeup:
            page = _page(run_dir, films.one_by_one(closeup))
    write_atomic(out, page.encode())
    return out


def _page(run_dir: Path, make: films.Make) -> str:
    files = RunFiles(run_dir)
    facts = files.facts()
    command = provenance.stage_command(facts, str(run_dir))
    offline, online = ep.load(files, "dataset"), ep.load(files, "online")
    realtime, lines = ep.load(files, "realtime/online"), files.episode_lines()
    rounds = ep.rounds(online, files.rounds(), lines)
    actors = results.cast(files.actors())
    bundles = files.bundles()
    filmed = _films(offline, rounds, make, lines)

    sections = [
        results.headline(actors, command("evaluate")),
        training.training(files.metrics("checkpoints"), command("train")),
        results.evaluation(actors, command("evaluate")),
        results.online(rounds, _speed(lines), command("finetune")),
        filmed.section(command("finetune")),
        process.filtering(
            _filter_records(offline, online, realtime),
            actors,
            command("finetune" if online else "collect"),
        ),
        process.bundles(bundles, command("export")),
        *gate.gate(bundles, command("calibrate")),
        process.latency(*_latency(files), _control_period(facts), command("deploy")),
    ]
    step, checkpoint = files.checkpoint_sha256()
    hashes = {
        "dataset": ep.content_hash(files, "dataset"),
        "online episodes": ep.content_hash(files, "online"),
        f"checkpoint {step.replace('_', ' ')}": checkpoint,
    }
    sections.append(provenance.provenance(facts, hashes, files.notes, command("demo")))
    tuned = files.metrics("finetune")
    if tuned is not None:
        title = "Training between the rounds"
        sections.insert(
            4, training.training(tuned, command("finetune"), slug="tuning", title=title)
        )
    return _render(run_dir, facts, results.cards(actors, rounds), sections)


def _films(
    offline: list[Any],
    rounds: list[ep.Round],
    make: films.Make,
    lines: ep.Lines,
) -> films.Films:
    acted = [r for r in rounds if r.n]
    first, last = (acted[0], acted[-1]) if len(acted) > 1 else (None, None)
    groups = []
    for entry in (first, last):
        members = [] if entry is None else list(entry.episodes)
        note = "" if entry is None else f"round {entry.number}"
        if entry is not None and entry.bundles:
            note += f", bundle {entry.bundles[-1]}"
        groups.append((note, members))
    scripted = [group[0] for group in ep.by_behavior(offline).values()]
    return films.Films(groups[0], groups[1], scripted, make, lines)


def _latency(files: RunFiles) -> tuple[dict[str, dict[str, float]], str]:
    """The stages, and how they were measured; a run in real time goes before any other."""
    for folder in ("realtime/deploy", "deploy"):
        found = files.latency(folder)
        if found:
            speed = _speed(files.episode_lines(folder))
            if speed is None:
                return found, "in one process, where the twin waits for the policy"
            return found, f"with the twin's clock at {speed:.1f} times real time"
    return {}, "while it is deployed"


def _speed(lines: ep.Lines) -> float | None:
    speeds = [line.get("speed") for line in lines.values()]
    return max((float(s) for s in speeds if isinstance(s, (int, float)) and s > 0), default=None)


def _filter_records(
    offline: list[Any], online: list[Any], realtime: list[Any]
) -> list[ep.FilterRecord]:
    groups = [("online", online), ("real time", realtime)]
    groups += [(f"data: {name}", members) for name, members in ep.by_behavior(offline).items()]
    found = (ep.filter_record(label, members) for label, members in groups)
    return [record for record in found if record is not None]


def _control_period(facts: dict[str, Any]) -> float:
    value = facts.get("control_period", CONTROL_PERIOD)
    return float(value) if isinstance(value, (int, float)) else CONTROL_PERIOD


def _render(run_dir: Path, facts: dict[str, Any], cards: list[Any], sections: list[Section]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        name=run_dir.resolve().name,
        subtitle=" · ".join(str(facts[key]) for key in _SUBTITLE if facts.get(key)),
        cards=cards,
        sections=sections,
        style=Markup((_TEMPLATES / "report.css").read_text("utf-8")),
        script=Markup((_TEMPLATES / "report.js").read_text("utf-8")),
        svg=Markup,
    )
