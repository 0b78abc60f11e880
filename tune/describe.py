"""A plan as a person reads it, and as `search.json` keeps it."""

from typing import Any

from dcgan.cli import duration
from dcgan.schema import COLUMNS, OBJECTIVES
from tune.cluster import describe_nodes
from tune.options import VERSION, Options, read_record
from tune.plan import Packing, Plan, Site
from tune.question import describe_axis, wanted_preset
from tune.searches import DEMO, SEARCHES

GIB = 2**30


def describe(plan: Plan, options: Options, site: Site) -> str:
    """The plan as a person reads it."""
    base = plan.search.base
    size = f"{base.image_size} × {base.image_size}"
    space = describe_space(plan)
    cost = site.seconds_per_epoch
    lines = [
        ("search", f"{plan.search.name}: {doc_of(plan.search.name)}"),
        ("preset", describe_preset(options, site)),
        ("cluster", describe_nodes(plan.nodes) if plan.nodes else ""),
        ("packing", describe_packing(site.packing) if site.packing else ""),
        ("data", f"{base.dataset}, {size}, width {base.generator_width}, {plan.epochs} epochs"),
        ("space", space[0]),
        *(("", line) for line in space[1:]),
        ("trials", describe_trials(plan)),
        ("rungs", plan.scheduler.text(plan)),
        ("metric", describe_objectives(plan)),
        ("cost", describe_cost(plan, cost) if cost else ""),
        ("confirm", describe_confirm(plan, cost) if plan.confirm else ""),
        ("results", plan.location),
        ("warning", site.warning),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in lines if text)


def doc_of(search: str) -> str:
    """What the search of a name is for."""
    return " ".join((SEARCHES[search].__doc__ or "").split())


def describe_preset(options: Options, site: Site) -> str:
    """The preset, and how it was chosen."""
    preset = wanted_preset(options, site.device)
    where = "in the cluster" if site.address else "here"
    reason = f"since there is {'a' if site.device == 'cuda' else 'no'} GPU {where}"
    if options.preset:
        reason = "as asked"
    hint = " (--preset report is the full study)" if preset.name == DEMO.name else ""
    return f"{preset.name}, {reason}{hint}"


def describe_packing(packing: Packing) -> str:
    """What was measured of trials that share a GPU."""
    text = (
        f"the largest trial takes {packing.trial_bytes / GIB:.1f} of {packing.gpu_bytes / GIB:.0f} "
        f"GiB and trains {packing.speed_alone:,.0f} images/s alone"
    )
    if packing.probed > 1:
        text += f", {packing.probed} side by side {packing.speed:,.0f}"
    return f"{text}: {packing.processes} on a GPU"


def describe_space(plan: Plan) -> list[str]:
    """What is tried of each varied setting, a line each."""
    search = plan.search
    lines = [f"{name:<18} {describe_axis(axis)}" for name, axis in search.axes.items()]
    lines += [f"{name:<18} follows {followed}" for name, followed in search.ties.items()]
    return lines or ["a single setting"]


def describe_trials(plan: Plan) -> str:
    """How many trials, by which sampler, how many at a time, and what each takes."""
    first = "the original study's grid"
    if plan.sampler != "grid":
        first = f"{plan.sampler}, the first at the baseline"
        if len(plan.points) > 1:
            first += f", then {len(plan.points) - 1} of an earlier search"
    seeds = f", each on {plan.replicas} seeds" if plan.replicas > 1 else ""
    gpus = f" and {plan.gpus:.3g} GPU" if plan.gpus else ""
    return (
        f"{plan.num_trials} by {first}; seed {plan.seed}{seeds}; {plan.concurrent} at a time, "
        f"{plan.cpus} CPU{gpus} each"
    )


def describe_objectives(plan: Plan) -> str:
    """What the search optimises."""
    if len(plan.objectives) > 1:
        return f"Pareto set of {', '.join(plan.objectives)}, on validation"
    return f"{plan.search.metric} on validation: {COLUMNS[plan.search.metric]}"


def describe_cost(plan: Plan, seconds_per_epoch: float) -> str:
    """How long the search takes, about."""
    epochs = plan.num_trials * plan.expected_epochs()
    seconds = epochs * seconds_per_epoch / plan.concurrent
    return f"about {epochs:.0f} epochs at {seconds_per_epoch:.1f} s: about {duration(seconds)}"


def describe_confirm(plan: Plan, seconds_per_epoch: float | None) -> str:
    """What the confirm stage does, and how long it takes, about."""
    text = (
        f"the best {plan.confirm} and the baseline on {plan.confirm_seeds} fresh seeds, judged on "
        f"test"
    )
    if seconds_per_epoch is None:
        return text
    runs = (plan.confirm + 1) * plan.confirm_seeds  # of one seed each
    seconds = runs * plan.epochs * seconds_per_epoch / plan.replicas / min(plan.slots, runs)
    return f"{text}: about {duration(seconds)} more"


def record(plan: Plan, options: Options, site: Site) -> dict[str, Any]:
    """What `search.json` keeps: space, rungs, protocol, conditions, and the options to go on with.

    Of the options, those are settled that the machines decided: the preset, and, on a single
    machine, how many trials share a GPU. (A cluster may have other GPUs when the search goes on.)
    A search to resume keeps its record, but for the options that a person has changed.
    """
    if options.resume:
        return read_record(plan.store) | {"options": options.saved()}
    search = plan.search
    settled = {"preset": wanted_preset(options, site.device).name}
    if site.packing and not site.address:
        settled["gpus_per_trial"] = str(site.share)
    return {
        "version": VERSION,
        "search": search.name,
        "axes": search.axes_as_json(),
        "ties": dict(search.ties),
        "base": search.base.to_dict(),
        "metric": search.metric,
        "mode": search.mode,
        "objectives": [{"column": name, "mode": OBJECTIVES[name]} for name in plan.objectives],
        "sampler": plan.sampler,
        "scheduler": plan.scheduler.name,
        "points": plan.points,
        "num_trials": plan.num_trials,
        "replicas": plan.replicas,
        "rungs": plan.rungs,
        "seed": plan.seed,
        "slots": plan.slots,
        "protocol": site.protocol,
        "device": site.protocol.get("device", site.device),
        "platform": site.platform,
        "versions": site.versions,
        "options": options.saved() | settled,
    }
