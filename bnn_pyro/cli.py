"""The command ``bnn-pyro``. Everything heavy is imported inside commands, so that ``--help`` answers at once.

Exit codes: 0 converged or approximate; 1 finished but not converged; 2 usage; ``BNNError.exit_code`` for other errors
raised on purpose (74 for run directories); 70 for one that was not; 130 on Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bnn_pyro.terminal import INTERRUPTED, Commands, visible, warn_in_a_line
from bnn_pyro.version import __version__

if TYPE_CHECKING:
    from bnn_pyro.runner import Finished

NOT_CONVERGED = 1


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80})
@click.version_option(__version__, "--version", prog_name="bnn-pyro", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
def main() -> None:
    """Bayesian neural networks: choose a model, fit it, and be told whether to believe it.

    \b
    bnn-pyro list                                       what there is
    bnn-pyro show mlp_gaussian                          one model, explained
    bnn-pyro methods                                    which method when
    bnn-pyro fit mlp_gaussian --inference svi           a quick approximation
    bnn-pyro fit mlp_gaussian --inference nuts          draws of the posterior
    bnn-pyro fit mlp_gaussian --data mine.csv --target price --inference svi
    bnn-pyro predict RUN --data new.csv --out pred.csv
    bnn-pyro compare RUN RUN

    Exit codes: 0 converged or approximate, 1 finished but not converged, 2 wrong
    usage, 74 a run directory that cannot be used, 130 stopped by Ctrl-C.
    """


@main.command("list")
@click.option("--task", metavar="TASK", help="Only models for this task, such as regression.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_(task: str | None, as_json: bool) -> None:
    """List the models."""
    from bnn_pyro import catalogue

    _show(catalogue.model_entries(task), catalogue.models_page, as_json)


@main.command()
@click.argument("name")
def show(name: str) -> None:
    """Explain one model: formulas, sites, settings, published numbers."""
    from bnn_pyro import catalogue
    from bnn_pyro.datasets import list_datasets
    from bnn_pyro.errors import UnknownNameError

    if name in list_datasets():
        raise UnknownNameError(f"show: expected a model, got {name}, a data set. bnn-pyro datasets describes it.")
    click.echo(catalogue.model_page(name))


@main.command()
@click.argument("models", metavar="[MODEL...]", nargs=-1)
@click.option("--inference", metavar="NAME", multiple=True, help="A method; repeatable.  [default: all]")
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True,
              help="A hyper-parameter, or an option of those methods that have it; repeatable. By default networks are "
              "small.")  # fmt: skip
@click.option("--out", metavar="DIR", default="runs/methods", show_default=True,
              help="Gets a run directory a fit; those that it has are not fitted again.")  # fmt: skip
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="All randomness comes from it.")
@click.option("--backend", metavar="NAME", default="auto", show_default=True, help="As of fit.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def methods(models: tuple[str, ...], as_json: bool, **asked: Any) -> None:
    """Say which method when; with MODELs, fit all methods and compare them.

    With MODELs, each is fitted by each method in a process of its own, and read
    back: held-out scores, distance from nuts, gradients, seconds, memory, and
    what each verdict says. Some minutes a model.
    """
    from bnn_pyro import method_notes, method_table, tables

    if not models:
        _show(method_notes.entries(), method_notes.page, as_json)
        return
    made = method_table.carry_out(models, say=lambda text: click.echo(visible(text), err=True), **asked)
    click.echo(tables.as_json(made) if as_json else visible(method_table.page(made)))


@main.command()
@click.option("--fetch", metavar="NAME", help="Download this one into the cache first; nothing else uses the network.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def datasets(fetch: str | None, as_json: bool) -> None:
    """List the data sets, and which of them are at hand.

    Those that come with scikit-learn and statsmodels always are; others are
    looked for in the folder that BNN_PYRO_DATA names and in the cache.
    """
    from bnn_pyro import catalogue

    if fetch is not None:
        from bnn_pyro.datasets import fetch_dataset

        click.echo(visible(f"{fetch} is in {fetch_dataset(fetch)}"))
        return
    _show(catalogue.dataset_entries(), catalogue.datasets_page, as_json)


def _rows_of_data(command: Any) -> Any:
    """The options that say which rows to use."""
    for option in reversed([
        click.option("--data", metavar="NAME", help="A data set, by default the model's own, or a CSV or Parquet file."),
        click.option("--target", metavar="COLUMN", help="The column of the file to predict."),
        click.option("--drop", metavar="COLUMN", multiple=True, help="A column of the file to leave out; repeatable."),
        click.option("--held-out", metavar="SHARE", type=float,
                     help="Share of the file's rows set aside for scores.  [default: 0.2]"),
        click.option("--missing", metavar="HOW", default="refuse", show_default=True,
                     help="Missing values of the file: refuse, drop their rows, or impute the median or most frequent "
                     "value and add a column that says where."),
        click.option("--na", metavar="TEXT", multiple=True, help="A text that means missing, such as '?'; repeatable."),
        click.option("--split", metavar="K", help="Which of a data set's fixed splits, from 0 (see bnn-pyro datasets)."),
    ]):  # fmt: skip
        command = option(command)
    return command


def _table(asked: dict[str, Any]) -> dict[str, Any]:
    """Takes the options of ``_rows_of_data``, but for --data, out of those that were given."""
    table = {name: asked.pop(name) for name in ("target", "drop", "held_out", "na", "split")}
    return table | {"missing": asked["missing"]}


@main.command()
@click.argument("model")
@_rows_of_data
@click.option(
    "--inference",
    metavar="NAME",
    default="nuts",
    show_default=True,
    help="nuts, chees, hmc, svi, laplace, ensemble, mc_dropout, map or prior.",
)
@click.option("--out", metavar="DIR", help="Run directory to write; by default runs/MODEL-DATA-INFERENCE.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="All randomness comes from it.")
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True,
              help="A hyper-parameter of the model or an option of the method, such as hidden=8,8 or draws=2000; "
              "may be given several times.")  # fmt: skip
@click.option("--dtype", metavar="NAME", help="float32 or float64; by default float64 for laplace, float32 for others.")
@click.option("--device", metavar="NAME", default="cpu", show_default=True,
              help="cpu, cuda, cuda:1, or auto; several, such as cuda:0,cuda:1, share the chains or members.")  # fmt: skip
@click.option("--engine", metavar="NAME", default="auto", show_default=True,
              help="auto, compiled, eager or pyro (Pyro's own SVI and NUTS).")  # fmt: skip
@click.option("--backend", metavar="NAME", default="auto", show_default=True,
              help="How gradients are computed: auto, inductor, eager or pyro.")  # fmt: skip
@click.option("--standardize/--no-standardize", default=None,
              help="Put inputs and targets into standard units, or not; by default as the model says.")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace the run in DIR, once the new one is whole.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@click.option("--no-pictures", is_flag=True, help="No PNG files in the run directory.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def fit(model: str, overwrite: bool, no_progress: bool, no_pictures: bool, as_json: bool, **asked: Any) -> int:
    """Fit a model to a data set or a table, and write a run directory.

    \b
    bnn-pyro fit mlp_gaussian --data diabetes --inference svi
    bnn-pyro fit mlp_gaussian --data mine.csv --target price --inference svi

    Prints a summary: function space, scores on held-out rows, and a verdict.
    --set takes what bnn-pyro show MODEL lists. Ctrl-C while nuts, chees or hmc
    draw keeps the draws so far (exit code 130).
    """
    from bnn_pyro import runner

    table = _table(asked)
    plan = runner.plan(model, overwrite=overwrite, progress=not no_progress, table=table, **asked)
    run = _fit(plan, pictures=not no_pictures)
    code = _exit_code(run) if run.posterior.draws.complete else INTERRUPTED
    if as_json:
        _json(run)
        return code
    _page(run, warnings=False)
    click.echo(f"\nSee this again:  {_command('summary', str(run.path))}")
    return code


@main.command()
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def summary(run: str, as_json: bool) -> int:
    """Print what fit printed, from the run directory RUN."""
    from bnn_pyro import runner

    finished = runner.read(run)
    if as_json:
        _json(finished)
    else:
        _page(finished)
    return _exit_code(finished)


@main.command()
@click.argument("run")
@click.option("--data", metavar="FILE", required=True,
              help="CSV or Parquet file of new rows, or a data set, whose held-out rows are predicted.")  # fmt: skip
@click.option("--out", metavar="FILE", help="CSV file to write, a line for each row; without it, a table is printed.")
@click.option("--interval", metavar="P", type=float, default=0.9, show_default=True,
              help="Probability of the central interval.")  # fmt: skip
@click.option("--skip-unknown", is_flag=True,
              help="Leave rows empty whose text column has a value that the training rows lack.")  # fmt: skip
@click.option(
    "--keep", metavar="COLUMN", multiple=True, help="A column of the file to copy, such as an id; repeatable."
)
@click.option("--na", metavar="TEXT", multiple=True, help="A text that means missing; by default as in fit.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print all rows as JSON.")
def predict(run: str, as_json: bool, **asked: Any) -> None:
    """Predict new rows by the run directory RUN.

    \b
    numbers: mean, sd, epistemic_sd (of the weights), aleatoric_sd (of the
             noise), lower and upper bound of the interval, noise included
    classes: label, a probability for each class, and in nats: entropy,
             epistemic (what knowing the weights would tell), aleatoric

    Columns are found by name; others in the file are ignored. If the target is
    among them, scores are printed.
    """
    from bnn_pyro import predicted_page, predicting, tables

    made = predicting.carry_out(run, **asked)
    click.echo(tables.as_json(predicted_page.as_rows(made)) if as_json else visible(predicted_page.page(made)))


@main.command()
@click.argument("runs", metavar="RUN RUN...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def compare(runs: tuple[str, ...], as_json: bool) -> None:
    """Compare runs of the same rows: LOO, held-out scores, cost, verdict."""
    from bnn_pyro import comparing, tables

    made = comparing.compare_runs(runs)
    click.echo(tables.as_json(comparing.as_dict(made)) if as_json else visible(comparing.page(made)))


@main.command()
@click.argument("model")
@_rows_of_data
@click.option(
    "--column", metavar="COLUMN", help="The input that varies; by default the first. Others stay at their median."
)
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="A hyper-parameter of the model; repeatable.")
@click.option("--draws", metavar="N", type=int, default=1000, show_default=True, help="Draws of the prior.")
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="All randomness comes from it.")
@click.option("--out", metavar="FILE", help="Picture to write; by default runs/prior-MODEL-DATA.png.")
@click.option("--overwrite", is_flag=True, help="Replace FILE.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def prior(model: str, as_json: bool, **asked: Any) -> None:
    """Draw functions from a model's prior: what it expects before it sees y.

    Writes a picture and prints how far y under the prior spreads, beside y.
    """
    from bnn_pyro import prior_check, tables

    table = _table(asked)
    made = prior_check.carry_out(model, table=table, **asked)
    click.echo(tables.as_json(prior_check.as_dict(made)) if as_json else visible(prior_check.page(made)))


@main.command()
@click.argument("model")
@click.option("--data", metavar="NAME", multiple=True, help="A data set; repeatable. By default the model's own.")
@click.option("--inference", metavar="NAME", multiple=True, default=("svi", "nuts"), show_default=True,
              help="A method; repeatable.")  # fmt: skip
@click.option("--set", "sets", metavar="KEY=VALUE", multiple=True,
              help="A hyper-parameter, or an option of those methods that have it; repeatable.")  # fmt: skip
@click.option("--seed", metavar="N", type=int, default=0, show_default=True, help="All randomness comes from it.")
@click.option("--split", metavar="K", help="Which of the fixed splits, from 0.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def coverage(model: str, as_json: bool, no_progress: bool, **asked: Any) -> None:
    """Fit a model to data sets and count how often held-out y lies in its interval.

    A posterior predictive check on rows that the fit has not seen: the 50, 90
    and 95 % intervals should hold that share of them.
    """
    from bnn_pyro import coverage as check
    from bnn_pyro import tables

    entries = check.carry_out(
        model, progress=not no_progress, say=lambda text: click.echo(visible(text), err=True), **asked
    )
    click.echo(tables.as_json(entries) if as_json else visible(check.page(model, entries)))


@main.command()
@click.option("--out", metavar="DIR", default="runs/demo", show_default=True, help="Gets one run directory a method.")
@click.option("--no-progress", is_flag=True, help="No progress bar.")
def demo(out: str, no_progress: bool) -> None:
    """Fit a small network by SVI and by NUTS, and compare them."""
    from bnn_pyro import demo as demonstration
    from bnn_pyro import tables

    plans = demonstration.plans(out, progress=not no_progress)
    click.echo(tables.wrapped(demonstration.INTRODUCTION))
    runs = []
    for number, plan in enumerate(plans, 1):
        click.echo(f"\n{f' {number} of {len(plans)}: {plan.method.name} ':=^80}\n")
        runs.append(_fit(plan, pictures=True))
        _page(runs[-1], warnings=False)
    click.echo(f"\n{' side by side ':=^80}\n")
    click.echo(visible(tables.comparison_page(runs)))
    click.echo(f"\n{tables.wrapped(demonstration.READING)}\n\nPictures")
    for run in runs:
        for picture in tables.pictures(run):
            click.echo(visible(f"  {run.path / picture}"))
    click.echo("Run directories, and the command that shows each again")
    for run in runs:
        click.echo(f"  {_command('summary', str(run.path))}")


def _fit(plan: Any, pictures: bool) -> Finished:
    from bnn_pyro import runner

    said = f"Fitting {plan.model.name} to {plan.source['name']} by {plan.method.name}; the run goes to {plan.out}"
    click.echo(visible(said), err=True)
    return runner.carry_out(plan, pictures, warn=warn_in_a_line)


def _page(run: Finished, warnings: bool = True) -> None:
    """The summary; without warnings where a fit has just shown them on stderr."""
    from bnn_pyro import tables

    click.echo(visible(tables.summary_page(run, warnings)))


def _json(run: Finished) -> None:
    from bnn_pyro import tables

    click.echo(tables.as_json(tables.summary_json(run)))


def _exit_code(run: Finished) -> int:
    return NOT_CONVERGED if run.content["verdict"]["verdict"] == "not converged" else 0


def _show(entries: list[dict[str, Any]], page: Any, as_json: bool) -> None:
    from bnn_pyro import tables

    click.echo(tables.as_json(entries) if as_json else visible(page(entries)))


def _command(*words: str) -> str:
    import shlex

    return visible(shlex.join(["bnn-pyro", *words]))


if __name__ == "__main__":
    main()
