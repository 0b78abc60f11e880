"""`python -m tune.run`: one command from a question to a table."""

import sys
from typing import Any

from dcgan import cli
from dcgan.store import StorageError
from tune.ledger import quiet_optuna
from tune.options import Options, from_flags, make_parser, resumed
from tune.plan import Plan, make_plan

# Ray, PyTorch and pandas take seconds to import, for which --help and errors need not wait: they
# are imported where they are needed.


def main() -> None:
    quiet_optuna()
    parser = make_parser()
    with cli.one_line_errors(parser):
        try:
            sys.exit(run(from_flags(parser)))
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            sys.exit(130)


def run(options: Options) -> int:
    """Asks the machines, prints the plan, runs it and prints the answer; returns the exit code.

    Raises:
        ValueError: options that cannot work.
        OSError: no cluster, no data, no place for the results, or one that is full or gone.
    """
    from tune.describe import describe, record
    from tune.site import settled, survey

    options = resumed(options) if options.resume else settled(options)
    site = survey(options)
    plan = make_plan(options, site)
    print(describe(plan, options, site), flush=True)
    if options.dry_run:
        return 0
    return search(plan, options, record(plan, options, site))


def search(plan: Plan, options: Options, record: dict[str, Any]) -> int:
    """Runs a plan, of which `search.json` keeps the record, from its first trial to the report;
    returns the exit code."""
    from analysis.tracker import wanted_mode
    from tune.answer import (
        print_answer,
        print_confirmed,
        report_command,
        write_model,
        write_page,
    )
    from tune.confirm import train_again
    from tune.ledger import retry_failed
    from tune.progress import Progress
    from tune.runner import run_plan, session, storage_error
    from tune.track import describe, tracked, tracking

    try:
        mode = options.wandb or wanted_mode()
        print(f"{'tracking':<8} {describe(mode, tracked(plan.location).folder)}\n", flush=True)
        with session(plan, record) as stop, tracking(plan, mode, stop):
            if options.retry_failed:
                print(f"retrying {retry_failed(plan)} failed trials")
            run_plan(plan, stop, Progress)
            found = print_answer(plan)
            if found and not stop.asked and (outlook := plan.scheduler.outlook(plan)):
                print(f"\n{outlook}")
            if found and plan.confirm and not stop.asked:
                train_again(plan, stop)
                print_confirmed(plan)
            interrupted = stop.asked
            if found and options.report and not interrupted:
                write_page(plan)
                write_model(plan)
            plan.store.put()
    except KeyboardInterrupt:  # before Ray was up, or for the second time
        found, interrupted = False, True
    except StorageError as error:
        explained = storage_error(error, plan)
        assert explained
        raise explained from error
    if found:
        print(f"\nagain, with figures for a paper, or of several searches: {report_command(plan)}")
    if interrupted:
        print(f"\nstopped; go on with: {plan.resume_command}")
        return 130
    return 0 if found else 1


if __name__ == "__main__":
    main()
