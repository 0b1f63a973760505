"""``anitune promote``: turn the best trials of a study into a model in the registry."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from dashboards.formatting import duration
from search.cli.interrupted import exit_if_stopped
from search.cli.opening import opened_study
from search.cli.options import Json
from search.cli.output import make_console
from search.cli.planned import recorded_task, run_planned
from search.plural import count_of, trials_named
from search.promote.plan import Options, PromotionPlan
from search.promote.promotion import Promoter
from search.work.forkserver import start_forkserver
from storage.addresses import redacted
from storage.evaluations import EvaluationOnTestSet, evaluations_on_test_set
from storage.promotions import Promotion
from storage.settings import home_folder
from storage.studies import Study
from storage.tokens import local_token_file
from storage.tracking.registry import CHAMPION
from trainer.networks.smoothness import kink_warning


def promote(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name of the study.")],
    top: Annotated[int, typer.Option(min=1, help="Number of best configurations to compare.")] = 5,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Number of seeds. Run i of a candidate uses fold i and seed i, both counted cyclically.",
        ),
    ] = 5,
    folds: Annotated[
        int,
        typer.Option(
            min=2,
            help="Number of folds by structure, and of folds by molecule, of all data except the test set.",
        ),
    ] = 5,
    ensemble: Annotated[int, typer.Option(min=1, help="Number of networks in the registered ensemble.")] = 8,
    at_most_parameters: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compare networks of at most N parameters. Default: with several objectives as many as the"
            " knee of the Pareto front has, else any.",
        ),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Evaluate on the test set even if it was evaluated on before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare the best configurations on folds, choose one, test it once, and register an ensemble of it.

    To continue a promotion that was stopped or killed, start it again.
    """
    start_forkserver()
    options = Options(top, seeds, folds, ensemble, at_most_parameters)
    given = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.values().items())
    with opened_study(study) as opened:
        with exit_if_stopped(f"anitune promote {study}{given}{' --again' if again else ''}"):
            promoter, promotion = promote_study(opened, options, again, quiet=as_json)
        opened_before = evaluations_on_test_set(opened.database, opened)
        tracking = opened.database.settings.tracking_uri
    if as_json:
        typer.echo(json.dumps(_values(promotion, opened_before), indent=2))
        return
    console = make_console()
    console.print(results_table(promotion, promoter.plan, promoter.decisive))
    for line in result_lines(promotion, promoter.plan, opened_before, tracking):
        console.print(line, soft_wrap=True, highlight=False)


def promote_study(
    study: Study, options: Options, again: bool, quiet: bool = False
) -> tuple[Promoter, Promotion]:
    """Print the plan of a promotion, and run all its remaining steps; see :func:`run_planned`.

    Parameters
    ----------
    again : whether to evaluate on the test set even if it was evaluated on before
    """
    promoter = Promoter(study.database, study, *recorded_task(study), options, again=again)
    return promoter, run_planned(promoter, _plan_lines(promoter), quiet)


def _plan_lines(promoter: Promoter) -> list[str]:
    plan = promoter.plan
    count, seconds = promoter.estimate()
    runs = " and ".join(
        f"{count_of(plan.runs[kind], 'run')} on {number} {kind} folds" for kind, number in plan.folds.items()
    )
    missing = [f"             no {kind} folds: {reason}" for kind, reason in plan.missing.items()]
    most = max(each.parameters for each in plan.candidates)
    return [
        f"candidates   {trials_named([each.trial for each in plan.candidates])};"
        f" the largest network has {most:,} parameters",
        f"each         {runs}; {promoter.decisive} folds decide, as the study is split",
        *missing,
        f"ensemble     {count_of(plan.options.ensemble, 'network')} of the chosen one",
        f"to be done   {count_of(count, 'training')}, about {duration(seconds)}",
    ]


def results_table(promotion: Promotion, plan: PromotionPlan, decisive: str) -> Table:
    """Tabulate the candidates and their errors on folds, with the chosen one marked."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.caption = (
        f"MAE in kcal/mol: mean ± standard deviation over runs, difference from the best on {decisive} folds"
        " with its 95 % interval"
    )
    table.add_column("trial", justify="right", no_wrap=True)
    # The texts are wrapped where the line is too short, so that no number is cut off.
    table.add_column("architecture", overflow="fold")
    table.add_column("params", justify="right", no_wrap=True)
    table.add_column("val MAE", justify="right", no_wrap=True)
    for kind in plan.folds:
        table.add_column(f"{kind} folds", justify="right", no_wrap=True)
    table.add_column("difference", justify="right")
    table.add_column("")
    for result in promotion.results or []:
        chosen = result["trial"] == promotion.choice
        cells = [f"{f['mean']:.3f} ± {f['spread']:.3f}" for f in result["folds"].values()]
        table.add_row(
            str(result["trial"]),
            escape(result["architecture"]),
            f"{result['parameters']:,}",
            f"{result['val_mae']:.3f}",
            *(cells or [""] * len(plan.folds)),
            _difference(result, decisive),
            "chosen" if chosen else f"failed: {escape(result['failed'])}" if result["failed"] else "",
            style="bold green" if chosen else "",
        )
    return table


def _difference(result: dict[str, Any], decisive: str) -> str:
    if result["failed"] or result["folds"][decisive]["difference"] is None:
        return ""
    errors = result["folds"][decisive]
    by = errors["difference"]
    words = "worse" if errors["told_apart"] else "cannot be told apart"
    return f"{by['mean']:+.3f} [{by['low']:+.3f}, {by['high']:+.3f}], {words}".replace("[", "\\[")


def result_lines(
    promotion: Promotion, plan: PromotionPlan, opened: list[EvaluationOnTestSet], tracking: str
) -> list[str]:
    """Describe the choice, its error on the test set, and how to load it, in the markup of rich."""
    assert promotion.choice is not None
    return _result_lines(promotion, opened, tracking, plan.candidate(promotion.choice).config.activation)


def _result_lines(
    promotion: Promotion, opened: list[EvaluationOnTestSet], tracking: str, activation: str
) -> list[str]:
    test = promotion.test or {}
    name, version = escape(str(promotion.model_name)), escape(str(promotion.model_version))
    # These lines are pasted into Python, where a JSON string is a valid literal.
    server = escape(json.dumps(redacted(tracking)))
    model = escape(json.dumps(f"models:/{promotion.model_name}@{CHAMPION}"))
    lines = [
        f"[bold]Chosen[/]      {escape(promotion.reason or '')}",
        f"[bold]Test MAE[/]    {test['mae_kcalmol']:.3f} kcal/mol of the ensemble,"
        f" {test['mean_member_mae_kcalmol']:.3f} of its members on average"
        f" ({test['structures']:,} structures)",
        f"[bold]Test set[/]    used {'once' if len(opened) == 1 else f'{len(opened)} times'}:",
        *(f"            {escape(str(each))}" for each in opened),
        f"[bold]Registered[/]  {name} version {version}, alias {CHAMPION}; in Python:",
        *(f"            {escape(line)}" for line in _sign_in_lines(tracking)),
        f"            mlflow.set_tracking_uri({server})",
        f"            model = mlflow.pyfunc.load_model({model})",
    ]
    if len(opened) > 1:
        lines.insert(3, "            Only the first error is unbiased: later choices may depend on it.")
    if (kinks := kink_warning([activation])) is not None:
        lines.append(f"[yellow]Dynamics[/]    this model has {kinks}")
    return lines


def _sign_in_lines(tracking: str) -> list[str]:
    """Return the lines with which a program signs in to a local server, if that needs a secret."""
    file = local_token_file(home_folder(), tracking)
    if file is None:
        return []
    return [f'os.environ["MLFLOW_TRACKING_TOKEN"] = pathlib.Path({str(file)!r}).read_text()']


def _values(promotion: Promotion, opened: list[EvaluationOnTestSet]) -> dict[str, Any]:
    return {
        "promotion": promotion.id,
        "candidates": promotion.results,
        "chosen_trial": promotion.choice,
        "reason": promotion.reason,
        "test": promotion.test,
        "model": {"name": promotion.model_name, "version": promotion.model_version},
        "evaluations": [asdict(each) for each in opened],
    }
