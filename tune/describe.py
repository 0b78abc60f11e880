"""A plan as a person reads it, and as `search.json` keeps it."""

from typing import Any

from dcgan.cli import duration
from dcgan.schema import COLUMNS, METRIC, OBJECTIVES
from tune.cluster import describe_nodes
from tune.options import LENGTHS, VERSION, Options, read_record
from tune.plan import Packing, Plan, Site, wanted_preset
from tune.searches import DEMO, describe_axis, doc_of

GIB = 2**30


def describe(plan: Plan, options: Options, site: Site) -> str:
    """The plan as a person reads it."""
    search, base = plan.search, plan.search.base
    size = f"{base.image_size} × {base.image_size}"
    wide = max(map(len, ("discriminator_lr", *search.axes, *search.ties))) + 2
    space = [f"{name:<{wide}} {describe_axis(axis)}" for name, axis in search.axes.items()]
    space += [f"{name:<{wide}} follows {followed}" for name, followed in search.ties.items()]
    metric = f"{METRIC} on validation: {COLUMNS[METRIC]}"
    if len(plan.objectives) > 1:
        metric = f"Pareto set of {', '.join(plan.objectives)}, on validation"
    lines = {
        "search": f"{search.name}: {doc_of(search.name)}",
        "preset": describe_preset(options, site),
        "cluster": describe_nodes(plan.nodes) if plan.nodes else "",
        "packing": describe_packing(site.packing) if site.packing else "",
        "data": f"{base.dataset}, {size}, width {base.generator_width}, {plan.epochs} epochs",
        "space": ("\n" + 9 * " ").join(space) or "a single setting",
        "trials": describe_trials(plan),
        "more": describe_more(plan, options) if options.resume else "",
        "rungs": plan.scheduler.text(plan),
        "metric": metric,
        "cost": describe_cost(plan, site),
        "confirm": describe_confirm(plan, site) if plan.confirm else "",
        "results": plan.location,
        "warning": site.warning,
    }
    return "\n".join(f"{name:<8} {text}" for name, text in lines.items() if text)


def describe_preset(options: Options, site: Site) -> str:
    """The preset, and how it was chosen."""
    name = wanted_preset(options, site.device).name
    hint = " (--preset full is the whole study)" if name == DEMO.name else ""
    if options.preset:
        return f"{name}, as asked{hint}"
    gpu = "a GPU" if site.device == "cuda" else "no GPU"
    return f"{name}, since there is {gpu} {'in the cluster' if site.address else 'here'}{hint}"


def describe_packing(packing: Packing) -> str:
    """What was measured of trials that share a GPU."""
    text = (
        f"the largest trial takes {packing.trial_bytes / GIB:.1f} of {packing.gpu_bytes / GIB:.0f} "
        f"GiB and trains {packing.speed_alone:,.0f} images/s alone"
    )
    if packing.probed > 1:
        text += f", {packing.probed} side by side {packing.speed:,.0f}"
    return f"{text}: {packing.processes} on a GPU"


def describe_trials(plan: Plan) -> str:
    """How many trials, by which sampler, how many at a time, and what each takes."""
    first = "the original study's grid"
    if plan.sampler != "grid":
        first = f"{plan.sampler}, the first at the baseline"
        if len(plan.points) > 1:
            first += f", then {len(plan.points) - 1} of an earlier search"
    seeds = f", each on {plan.replicas} seeds" if plan.replicas > 1 else ""
    gpus = f" and {plan.gpus:.3g} GPU" if plan.gpus else ""
    count = f"within {plan.epochs_in_all} epochs" if plan.epochs_in_all else f"{plan.num_trials}"
    return (
        f"{count} by {first}; seed {plan.seed}{seeds}; {plan.concurrent} at a time, "
        f"1 CPU{gpus} each"
    )


def describe_more(plan: Plan, options: Options) -> str:
    """How many trials, or epochs, were added on resuming, and whether that differs from asking at
    once."""
    before = read_record(plan.store)
    if plan.epochs_in_all and plan.epochs_in_all > before["epochs_in_all"]:
        return (
            f"{plan.epochs_in_all - before['epochs_in_all']} more epochs than before (asked for at "
            f"once, the last ones of before might have gone to other trials)"
        )
    more = plan.num_trials - before["num_trials"]
    if not more:
        return ""
    text = f"{more} more trials than before, as if they had been asked for at once"
    if options.points_from:
        text += f", but for further settings of {options.points_from}"
    return text


def describe_cost(plan: Plan, site: Site) -> str:
    """How long the search takes, about, where that was measured."""
    if site.seconds_per_epoch is None:
        return ""
    epochs = plan.expected_epochs_in_all()
    total = duration(epochs * site.seconds_per_epoch / plan.concurrent)
    return f"about {epochs:.0f} epochs at {site.seconds_per_epoch:.1f} s: about {total}"


def describe_confirm(plan: Plan, site: Site) -> str:
    """What the confirm stage does, and how long it takes, about, where that was measured."""
    text = (
        f"the best {plan.confirm} and the baseline on {plan.confirm_seeds} fresh seeds, scored on "
        f"test"
    )
    if site.seconds_per_epoch is None:
        return text
    runs = (plan.confirm + 1) * plan.confirm_seeds  # of one seed each
    seconds = runs * plan.epochs * site.seconds_per_epoch / plan.replicas / min(plan.slots, runs)
    return f"{text}: about {duration(seconds)} more"


def record(plan: Plan, options: Options, site: Site) -> dict[str, Any]:
    """What `search.json` keeps: space, rungs, protocol, conditions, and the options to go on with.

    Of the options, those are settled that the machines decided: the preset, and, on a single
    machine, how many trials share a GPU. (A cluster may have other GPUs when the search goes on.)
    A search to resume keeps its record, but for the options that a person has changed.
    """
    if options.resume:
        kept, asked = read_record(plan.store), options.saved()
        lengths = {name: getattr(plan, name) for name in LENGTHS}
        for name, length in lengths.items():
            if length == kept.get(name):  # nobody has asked for another number
                asked[name] = kept["options"].get(name)
        return kept | {"options": asked, "points": plan.points} | lengths
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
        "metric": METRIC,
        "mode": OBJECTIVES[METRIC],
        "objectives": [{"column": name, "mode": OBJECTIVES[name]} for name in plan.objectives],
        "sampler": plan.sampler,
        "scheduler": plan.scheduler.name,
        "points": plan.points,
        "num_trials": plan.num_trials,
        "replicas": plan.replicas,
        "rungs": plan.rungs,
        "epochs_in_all": plan.epochs_in_all,
        "seed": plan.seed,
        "slots": plan.slots,
        "protocol": site.protocol,
        "data": site.data,
        "device": site.protocol.get("device", site.device),
        "platform": site.platform,
        "versions": site.versions,
        "options": options.saved() | settled,
    }
