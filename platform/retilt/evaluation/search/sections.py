"""What the report of a λ search says, in order: search in, a ``Document`` out."""

from __future__ import annotations

from collections.abc import Iterator

from retilt.evaluation.search import axis, curves, figures, tables, words
from retilt.evaluation.search.layout import Search, done, metric, part, rates, title, where
from retilt.evaluation.views import histogram
from retilt.evaluation.views.document import Block, Bullets, Code, Document, Section, Warned, shown, told

NOT_RUN = "Not run."
PRINTED = 12
"""Characters of a hash that are shown."""


def document(search: Search) -> Document:
    """The whole report."""
    name = part(search, "dataset").get("name", "an unnamed data set")
    optional = [Section("Drift since the previous choice", _drift(search))] if part(search, "drift") else []
    return Document(
        f"λ search on {name}",
        list(_lead(search)),
        [
            Section("λ against every metric", _metrics(search)),
            Section("The choice", _choice(search)),
            Section("Trials", _trials(search)),
            Section("Training curves", _curves(search)),
            Section("The grid", _grid(search)),
            Section("Noise and the theory's floor", list(words.floor(search)) or ["The noise was not estimated."]),
            *optional,
            Section("Cost", _cost(search)),
            Section("Data", _data(search)),
            Section("How to go on", _next(search)),
            Section("How to read this, and how to repeat it", list(_reading(search))),
        ],
    )


def _lead(search: Search) -> Iterator[Block]:
    yield words.choice(search)
    if found := [*words.comparisons(search), *filter(None, [words.cost(search)])]:
        yield Bullets(found)
    yield from map(Warned, words.warnings(search))
    if policy := search.get("policy"):
        yield f"The chosen policy: {policy}"


def _metrics(search: Search) -> list[Block]:
    several = len(rates(done(search, "exp_rsft"))) > 1
    caption = (
        f"Metrics on {where(search)} of the validation part by λ, "
        + ("a line for each learning rate, " if several else "")
        + "with 95% intervals over users. At the ends of the axis what λ → 0 (top-rated) and λ → ∞ (BC continued) tend "
        "to, and RSFT beside them"
        + (", each at its best learning rate" if several else "")
        + "; their values are also drawn across. "
    )
    blocks = shown("metrics", caption + _lengths(search), figures.metrics(search))
    if not blocks:
        return [NOT_RUN]
    second = (
        f"{title(metric(search))} as above, with what λ does to the data (effective sample size of the weights, left) "
        "and to the policy (exact KL to the initial policy, mean over validation positions, right), in black on second "
        "axes. ESS/n follows from λ alone; KL grows with the epochs of a trial, so marks of different sizes do not "
        "compare."
    )
    blocks += shown("tilt", second, figures.tilt(search))
    floors = axis.floors(search)
    if floors:
        named = ", ".join(f"{value:.3g} ({name})" for name, value in floors.items())
        blocks.append(f"The theory's floor of λ for the estimated noise is {named}; what that means is below.")
    return blocks


def _lengths(search: Search) -> str:
    """What the sizes of the marks say, where trials have different lengths."""
    found = figures.lengths(search)
    if len(found) < 2:
        return ""
    deciding = part(search, "protocol").get("deciding_epochs")
    text = f"Trials trained {', '.join(found.values())} epochs (size of the marks). "
    if figures.BEFORE in found:
        text += (
            f"Hollow: ended early, before the rung of {words.epochs(deciding)} in which λ was chosen, so lower than it "
            "would be after more; dotted lines join trials of different lengths. "
        )
    if figures.GONE_ON in found:
        text += "Large: trained further after the choice."
    return text


def _choice(search: Search) -> list[Block]:
    protocol = part(search, "protocol")
    by = f"{title(metric(search))} on {where(search)} of the validation part"
    if protocol.get("search") == "previous":
        rule = f"The previous choice was kept and its λ trained on today's data; values are {by}."
    else:
        deciding = protocol.get("deciding_epochs")
        after = "" if deciding is None else f" after {words.epochs(deciding)}"
        rungs = [each["epochs"] for each in protocol.get("rungs") or []]
        if deciding in rungs and rungs.index(deciding):
            after += f" and among the better third of the λ after {words.epochs(rungs[rungs.index(deciding) - 1])}"
        rule = (
            f"Rule: by {by}{after}, the largest λ whose paired deficit to the best is at most one standard error of "
            "that difference. A larger λ stays nearer to what was logged and trusts the reward less. BC continued "
            "and top-rated are trained too, to see whether λ matters at all; RSFT is a reference and never chosen."
        )
    table = tables.compared(search)
    return [rule, words.choice(search), *([] if table is None else [table])]


def _trials(search: Search) -> list[Block]:
    table = tables.trials(search)
    if table is None:
        return [NOT_RUN]
    blocks: list[Block] = [
        f"{title(metric(search))} is of each trial's best epoch; KL and entropy in nats.",
        table,
        *told(tables.failures(search), "Failed, and never chosen:"),
        *told(tables.metrics(search), f"Every metric on {where(search)}; the largest of each stressed:"),
    ]
    if part(search, "protocol").get("group", "all") != "all":
        blocks += told(tables.metrics(search, "all"), "The same on every target:")
    return blocks


def _curves(search: Search) -> list[Block]:
    caption = (
        "Validation metric after each epoch, and the training loss, coloured by λ; epoch 0 is the initial policy, "
        "dashed vertical lines are the ends of rungs. Each λ weights the loss otherwise, so the losses of two λ do not "
        "compare."
    )
    return shown("curves", caption, curves.png(search)) or [NOT_RUN]


def _grid(search: Search) -> list[Block]:
    grid, rungs = part(search, "grid"), part(search, "protocol").get("rungs") or []
    blocks: list[Block] = [f"λ {grid['source']}."] if grid.get("source") else []
    if given := grid.get("learning_rates"):
        blocks.append(f"Learning rates: {', '.join(f'{each:g}' for each in given)}.")
    if rungs:
        told_of = ", ".join(f"{each['trials']} to {words.epochs(each['epochs'])}" for each in rungs)
        blocks.append(f"Trials ({part(search, 'protocol').get('search', 'search')}): {told_of}.")
    blocks += told(tables.points(search), "Effective sample size of the weights exp(r/λ), from the rewards alone:")
    merged = [
        f"λ = {each['temperature']:g} was merged with λ = {each['kept']:g}: they divide the weight among the events "
        f"alike (ESS/n {each['ess']:.3f} and {each['kept_ess']:.3f})."
        for each in grid.get("merged") or []
    ]
    return blocks + ([Bullets(merged)] if merged else []) or [NOT_RUN]


def _drift(search: Search) -> list[Block]:
    found = part(search, "drift")
    level = {"none": "No drift", "little": "A little drift", "much": "Much drift"}.get(found.get("level", ""), "Drift")
    text = f"{level} since {found.get('previous', 'the previous search')}. {found.get('reason') or ''}".rstrip()
    return [text, *told(tables.drifts(search), "Relative changes of the statistics, and the stability index:")]


def _cost(search: Search) -> list[Block]:
    table, text = tables.costs(search), words.cost(search)
    if table is None:
        return [NOT_RUN]
    about = "The seconds of one full-length run are estimated from the speed of all trials. Start-up is not counted."
    return [*([] if text is None else [text[0].upper() + text[1:]]), table, about]


def _data(search: Search) -> list[Block]:
    data, protocol = part(search, "dataset"), part(search, "protocol")
    counts = [f"{data[name]:,} {name}" for name in ("users", "items", "events") if data.get(name) is not None]
    split = f"; split {protocol['split']} (k = {protocol.get('k', '–')})" if protocol.get("split") else ""
    caption = "Share of the events with each reward."
    text = f"{data.get('name', 'Data set')}: {', '.join(counts) or 'sizes unknown'}{split}. Test data were not touched."
    return [text, *shown("histogram", caption, histogram.png(data.get("histogram")))]


def _next(search: Search) -> list[Block]:
    commands = search.get("next") or []
    policy = search.get("policy")
    text = "No policy was chosen." if policy is None else f"The chosen policy, ready for jobs/evaluate.py: {policy}"
    return [text, *([Code("\n".join(commands))] if commands else [])]


def _reading(search: Search) -> Iterator[Block]:
    bootstrap = part(part(search, "identity"), "bootstrap")
    count = f"{bootstrap['replicates']:,} " if bootstrap.get("replicates") else ""
    yield (
        f"In brackets: 95% intervals from {count}Poisson bootstrap replicates that resample users, the same for every "
        "trial, so differences are paired and can be certain although two intervals overlap. They cover the choice of "
        "users, not the randomness of training. What was chosen as the best of many is flattered by its own validation "
        "metric: judge it on test data."
    )
    if code := part(part(search, "identity"), "code"):
        source = str(code.get("source_sha256", ""))[:PRINTED]
        yield f"retilt {code.get('retilt', '–')}, source {source}, torch {code.get('torch', '–')}."
    data = part(search, "dataset")
    if data.get("fingerprint"):
        yield f"Data set {data.get('uri', '')} {data['fingerprint']}."
    if search.get("initial"):
        yield f"Initial policy: {search['initial']}"
    if commands := part(search, "protocol").get("commands"):
        yield Code("\n".join(commands))
