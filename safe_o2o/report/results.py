"""Sections on how well it works: headline, evaluation table, online rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from safe_o2o.report import figures
from safe_o2o.report.blocks import Card, Figure, Figures, Missing, Section, Table
from safe_o2o.report.episodes import Round
from safe_o2o.report.figures import Row, percent, span
from safe_o2o.report.intervals import Interval, ratio
from safe_o2o.report.run_files import ActorResult

SUCCESS_BAR, VIOLATION_BAR = 1.5, 0.5  # times the behaviour mixture's rate

_ORDER = ("offline", "before", "after", "mixture", "expert", "unsafe", "random", "other")
_ROLE = {"offline": "policy", "before": "policy", "after": "finetuned"}
_LABEL = {
    "offline": "offline policy",
    "before": "before fine-tuning",
    "after": "after fine-tuning",
    "mixture": "behaviour mixture",
    "expert": "expert script",
    "unsafe": "unsafe script",
    "random": "random script",
}


@dataclass(frozen=True)
class Actor:
    """A result and the part it plays in the comparison."""

    result: ActorResult
    part: str
    label: str

    @property
    def role(self) -> str:
        """Its colour."""
        return _ROLE.get(self.part, self.part)


def cast(results: Sequence[ActorResult]) -> list[Actor]:
    """Tell who is who by name; in the order in which they are shown."""
    base = next((r.variant for r in results if "mixture" in r.name.lower()), None)
    found = []
    for result in results:
        part = _part(result, base)
        label = _LABEL.get(part, result.name)
        if result.variant and result.variant != base and part not in ("before", "after"):
            label = f"{label}, {result.variant}"
        found.append(Actor(result, part, label))
    seen = [actor.label for actor in found]
    named = [
        Actor(a.result, a.part, a.result.name.replace("_", " ")) if seen.count(a.label) > 1 else a
        for a in found
    ]
    return sorted(named, key=lambda a: (_ORDER.index(a.part), a.result.name))


def _part(result: ActorResult, base: str | None) -> str:
    name = result.name.lower().replace("-", "_")
    if "after" in name or "finetune" in name or "fine_tune" in name:
        return "before" if "before" in name else "after"
    if "before" in name:
        return "before"
    for part in ("mixture", "random", "expert", "unsafe"):
        if part in name:
            return part
    if any(word in name for word in ("offline", "policy", "bundle", "fosp", "v0")):
        moved = base is not None and result.variant not in ("", base)
        return "before" if moved else "offline"
    return "other"


def find(actors: Sequence[Actor], part: str) -> Actor | None:
    """The first actor of a part."""
    return next((actor for actor in actors if actor.part == part), None)


def times(interval: Interval) -> str:
    """A ratio with its interval: `1.68× (1.44–1.97)`."""
    low, high = (f"{end:.2f}" for end in (interval.low, interval.high))
    return f"{interval.value:.2f}× ({low}–{high})"


def compare(policy: Actor, mixture: Actor) -> tuple[Interval, Interval]:
    """Success and violation of a policy as multiples of the mixture's."""
    a, b = policy.result, mixture.result
    return (
        ratio(a.counts[0], a.n, b.counts[0], b.n),
        ratio(a.counts[1], a.n, b.counts[1], b.n),
    )


def met(policy: Actor, mixture: Actor) -> tuple[bool, bool]:
    """Whether the two bars are met by the point estimates."""
    a, b = policy.result, mixture.result
    return (
        a.success.value >= SUCCESS_BAR * b.success.value,
        a.violation.value <= VIOLATION_BAR * b.violation.value,
    )


def cards(actors: Sequence[Actor], rounds: Sequence[Round]) -> list[Card]:
    """The headline numbers that the run's files support."""
    found = []
    policy, mixture = find(actors, "offline"), find(actors, "mixture")
    if policy is not None:
        result, verdict = policy.result, ["", ""]
        fine: list[bool | None] = [None, None]
        if mixture is not None:
            more, less = compare(policy, mixture)
            fine = list(met(policy, mixture))
            verdict = [
                f"{more.value:.2f}× mixture, target ≥ {SUCCESS_BAR}×",
                f"{less.value:.2f}× mixture, target ≤ {VIOLATION_BAR}×",
            ]
        pair = (
            ("Success, offline policy", result.success),
            ("Violations, offline policy", result.violation),
        )
        for i, (label, value) in enumerate(pair):
            detail = f"95\u2009% CI {span(value)}\u2009%, n\u2009=\u2009{result.n}"
            found.append(Card(label, percent(value.value), detail, verdict[i], fine[i]))
    before, after = find(actors, "before"), find(actors, "after")
    if before is not None and after is not None:
        a, b, where = before.result, after.result, "evaluated"
        pairs = [(a.success, b.success), (a.violation, b.violation)]
        sizes = f"n\u2009=\u2009{a.n} and {b.n}"
    else:
        done = [r for r in rounds if r.success is not None and r.violation is not None]
        if len(done) < 2:
            return found
        first, last, where = done[0], done[-1], "first and last round"
        pairs = [(first.success, last.success), (first.violation, last.violation)]  # type: ignore[list-item]
        sizes = f"n\u2009=\u2009{first.n} and {last.n}"
    good = (pairs[0][1].value >= pairs[0][0].value, pairs[1][1].value <= pairs[1][0].value)
    claims = ("not less than before", "not more than before")
    for i, label in enumerate(("Success, fine-tuning", "Violations, fine-tuning")):
        old, new = (percent(rate.value).removesuffix("\u2009%") for rate in pairs[i])
        claim = claims[i] if good[i] else ("less than before", "more than before")[i]
        found.append(Card(label, f"{old} → {new}\u2009%", f"{where}, {sizes}", claim, good[i]))
    return found


def headline(actors: Sequence[Actor], command: str) -> Section:
    """Section 1: rates with intervals and bars."""
    section = Section(
        "headline",
        "Who succeeds, who collides",
        "Success: the tool reached the goal. Violation: any contact with an obstacle during the "
        "episode. Every actor faced fresh layouts; intervals are Wilson's, at 95 %.",
    )
    if not actors:
        section.blocks.append(Missing("No evaluation yet: success and violation rates.", command))
        return section
    mixture, policy = find(actors, "mixture"), find(actors, "offline")
    base = [a for a in actors if a.part not in ("before", "after")]
    tuned = [a for a in actors if a.part in ("before", "after")]
    for slug, title, group in (
        ("all", "", base),
        ("tuning", "Before and after fine-tuning", tuned),
    ):
        if not group:
            continue
        pair = []
        for metric, at_most in (("success", False), ("violation", True)):
            rows = [Row(a.label, a.role, getattr(a.result, metric)) for a in group]
            factor = VIOLATION_BAR if at_most else SUCCESS_BAR
            bar = None
            if mixture is not None and slug == "all":
                bar = factor * getattr(mixture.result, metric).value
            name = f"rate-{slug}-{metric}"
            said = ", ".join(f"{r.label} {percent(r.interval.value)}" for r in rows)
            svg = figures.interval_dots(
                name, f"{metric} rate", rows, f"{metric} rate: {said}", bar=bar, at_most=at_most
            )
            text = "higher is better" if not at_most else "lower is better"
            line = f" Dashed: {factor:g} times the behaviour mixture." if bar is not None else ""
            caption = (
                f"{metric.capitalize()} rate, {text}. Dot: estimate; band: 95 % interval.{line}"
            )
            pair.append(Figure(svg, caption, _command(group, command)))
        section.blocks.append(Figures(pair, title=title))
    if policy is not None and mixture is not None:
        section.blocks.append(_bars_table(policy, mixture))
    elif mixture is None:
        section.blocks.append(
            Missing("No evaluation of the behaviour mixture: no ratios.", command)
        )
    return section


def _bars_table(policy: Actor, mixture: Actor) -> Table:
    ratios, fine = compare(policy, mixture), met(policy, mixture)
    bars = (f"≥ {SUCCESS_BAR:.2f}×", f"≤ {VIOLATION_BAR:.2f}×")
    rows = [
        (
            metric,
            _rate(getattr(policy.result, metric)),
            _rate(getattr(mixture.result, metric)),
            times(ratios[i]),
            bars[i],
            "✓ met" if fine[i] else "✗ missed",
        )
        for i, metric in enumerate(("success", "violation"))
    ]
    return Table(
        ("rate", policy.label, mixture.label, "ratio", "target", ""),
        rows,
        "Ratio of the offline policy's rate to the behaviour mixture's, with Katz's log 95 % "
        "interval. The targets are for the estimates.",
        text=frozenset({0, 5}),
    )


def evaluation(actors: Sequence[Actor], command: str) -> Section:
    """Section 3: the full table."""
    section = Section("evaluation", "Evaluation", "All actors, one line each.")
    if not actors:
        section.blocks.append(Missing("No evaluation yet.", command))
        return section
    rows = []
    for actor in actors:
        result = actor.result
        share = result.verdict_share
        touched = 1 - share["pass"] if "pass" in share else None
        rows.append(
            (
                actor.label,
                result.variant or "–",
                str(result.n),
                _rate(result.success),
                _rate(result.violation),
                _mean(result.returns, 2),
                _mean(result.length, 1),
                percent(touched) if touched is not None else "–",
            )
        )
    head = (
        "actor",
        "variant",
        "episodes",
        "success",
        "violation",
        "return",
        "length (steps)",
        "touched by filter",
    )
    caption = (
        "Estimates with 95 % intervals in brackets. Return: sum of rewards of an episode. Touched "
        "by filter: share of policy steps that were corrected or stopped."
    )
    section.blocks.append(Table(head, rows, caption, text=frozenset({0, 1})))
    commands = [a for a in actors if a.result.command]
    if commands:
        section.blocks.append(
            Table(
                ("actor", "first seed", "command"),
                [
                    (a.label, "–" if (s := a.result.seed) is None else str(s), a.result.command)
                    for a in commands
                ],
                "The command behind each line, and the seed of its first layout.",
                text=frozenset({0, 2}),
                mono=frozenset({2}),
            )
        )
    return section


def online(rounds: Sequence[Round], speed: float | None, command: str) -> Section:
    """Section 4: fine-tuning round by round."""
    section = Section(
        "online",
        "Online fine-tuning, round by round",
        "The arm acts for a round of episodes in a scene it has not seen; the learner trains on "
        "them and proposes a new bundle; the promotion check decides whether it goes live.",
    )
    if speed is not None:
        section.lead += f" The twin's clock ran at up to {speed:.1f} times real time."
    if not rounds:
        section.blocks.append(Missing("No online episodes and no learner decisions yet.", command))
        return section
    done = [r for r in rounds if r.n]
    pair = []
    for metric, role in (("success", "success"), ("violation", "violation")):
        intervals = [i for r in done if (i := getattr(r, metric)) is not None]
        if not intervals:
            continue
        svg = figures.rounds(
            f"rounds-{metric}",
            f"{metric} rate",
            intervals,
            [str(r.number) for r in done],
            f"{metric} rate by round: " + ", ".join(percent(i.value) for i in intervals),
            role=role,
            promoted=[bool(r.promoted) for r in done],
        )
        better = "higher" if metric == "success" else "lower"
        caption = (
            f"{metric.capitalize()} rate of the online episodes of each round, {better} is better. "
            "Band: Wilson 95 % interval. ▲ a new bundle went live after that round."
        )
        pair.append(Figure(svg, caption, command))
    if pair:
        section.blocks.append(Figures(pair))
    rows = []
    for entry in rounds:
        went = {None: "–", True: "✓ promoted", False: "✗ refused"}[entry.promoted]
        if entry.promoted is False and not entry.candidate:  # none was made
            went = "– unchanged"
        rows.append(
            (
                str(entry.number),
                str(entry.n),
                "–" if entry.success is None else _rate(entry.success),
                "–" if entry.violation is None else _rate(entry.violation),
                ", ".join(entry.bundles) or "–",
                _effort(entry),
                entry.candidate or "–",
                went,
                entry.reason or "–",
            )
        )
    section.blocks.append(
        Table(
            (
                "round",
                "episodes",
                "success",
                "violation",
                "acted",
                "trained for",
                "proposed",
                "decision",
                "reason",
            ),
            rows,
            "What acted in each round, what the learner proposed after it, and why it went live.",
            text=frozenset({4, 6, 7, 8}),
        )
    )
    checks = _promotion(rounds)
    if checks is not None:
        section.blocks.append(checks)
    return section


def _promotion(rounds: Sequence[Round]) -> Table | None:
    """The checks behind each decision: a line a check, a column a round."""
    decided = [entry for entry in rounds if entry.checks]
    names = list(dict.fromkeys(check[0] for entry in decided for check in entry.checks))
    if not names:
        return None
    rows = []
    for name in names:
        cells = []
        for entry in decided:
            check = next((check for check in entry.checks if check[0] == name), None)
            cells.append(
                "–" if check is None else f"{'✓' if check[3] else '✗'} {figures.compact(check[1])}"
            )
        bound = next(c[2] for entry in decided for c in entry.checks if c[0] == name)
        rows.append((name, figures.compact(bound), *cells))
    return Table(
        ("check", "bound", *(f"round {entry.number}" for entry in decided)),
        rows,
        "Promotion checks on held-out episodes: each bundle's value, and if it kept the bound.",
    )


def _command(group: Sequence[Actor], fallback: str) -> str:
    return next((a.result.command for a in group if a.result.command), fallback)


def _rate(interval: Interval) -> str:
    return f"{percent(interval.value)} ({span(interval)})"


def _effort(entry: Round) -> str:
    parts = [] if entry.updates is None else [f"{entry.updates} updates so far"]
    parts += [] if entry.seconds is None else [f"{entry.seconds:.0f} s"]
    return ", ".join(parts) or "–"


def _mean(interval: Interval | None, digits: int) -> str:
    if interval is None:
        return "–"
    text = f"{interval.value:.{digits}f}"
    if interval.low < interval.high:
        text += f" ({interval.low:.{digits}f}–{interval.high:.{digits}f})"
    return text.replace("-", "−")
