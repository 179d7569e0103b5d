"""Commands that retrain models and evaluate methods against them: retrain, evaluate, counterfactual."""

import contextlib
import json
from dataclasses import asdict
from typing import Annotated, Any, cast

import numpy as np
import typer

from dtrak.config import load_study
from dtrak.execution.share import Share
from dtrak.methods.settings import Setting
from dtrak.methods.subsets import Family
from dtrak.study.folder import StudyFolder
from dtrak.utils.files import exclusive
from dtrak.utils.progress import progress
from index_builder.options import (
    BatchOption,
    DeviceOption,
    EngineFor,
    JsonOption,
    PrecisionName,
    ShardOption,
    StudyArgument,
    TruthFamily,
    takes_engine,
)
from index_builder.terminal import errors


@takes_engine
def retrain(
    study: StudyArgument,
    engine_for: EngineFor,
    subsets: Annotated[int, typer.Option(min=2, help="Number of subsets.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Models trained per subset.")] = 1,
    family: Annotated[
        TruthFamily,
        typer.Option(
            help="lds: halves, to evaluate methods; fit: halves for empirical-influence and datamodel; remove-20 and "
            "remove-5: without that share; creators, clusters: without one group."
        ),
    ] = TruthFamily("lds"),
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Training precision. Default: the study's.", show_default=False)
    ] = None,
    device: DeviceOption = "cpu",
    shard: ShardOption = None,
) -> None:
    """Train subset models of STUDY and record their losses on the evaluation queries; resumable."""
    from dtrak.build.pipeline import prepare_data, require_prepared
    from dtrak.build.retrain import retrain_subsets

    folder = StudyFolder(load_study(study))
    share = None if shard is None else Share.parse(shard)
    if share is None:
        prepare_data(folder)
    else:
        require_prepared(folder)
    with progress(f"retrain {folder.study.name}", subsets * seeds) as show:

        def advance(done: int, total: int) -> None:
            show(done, "models", total)

        chosen: Any = precision.value if precision else None
        new = retrain_subsets(
            folder,
            cast(Family, family.value),
            subsets,
            seeds,
            engine_for(device),
            chosen,
            advance,
            lambda done, total: show(done, "evaluation queries", total),
            device,
            share,
        )
    what = f"{subsets * seeds} subset models" if share is None else f"subset models of shard {shard}"
    errors.print(f"Finished {what} of '{folder.study.name}', {new} of them new.")


@takes_engine
def evaluate(
    study: StudyArgument,
    engine_for: EngineFor,
    batch_size: BatchOption = 16,
    device: DeviceOption = "cpu",
    missing_only: Annotated[
        bool, typer.Option("--missing-only", help="Keep results that exist; compute only what pages still need.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure how well each method and each ablation setting predicts the retrained models of STUDY (LDS)."""
    from dtrak.build.measure import evaluate_study

    rows = evaluate_study(StudyFolder(load_study(study)), engine_for(device), batch_size, device, missing_only)
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], indent=2))
        return
    print(f"LDS × 100 over {rows[0].subset_models} subset models, {rows[0].seeds} training seed(s) each.")
    print("LDS: λ chosen on half of the models, evaluated on the other half. Oracle: best λ on all (optimistic).")
    print(f"{'setting':50}{'queries':12}{'LDS':>7}{'95 % interval':>18}{'oracle':>9}  λ chosen")
    for row in sorted(rows, key=lambda r: (r.queries, -r.lds_crossfit)):
        low, high = row.interval
        between = f"{100 * low:.1f} to {100 * high:.1f}"
        dampings = ", ".join(f"{d:.3g}" for d in row.dampings)
        title = Setting.parse(row.setting).title
        score, oracle = 100 * row.lds_crossfit, 100 * row.lds_oracle
        print(f"{title:50}{row.queries:12}{score:7.1f}{between:>18}{oracle:9.1f}  {dampings}")


@takes_engine
def counterfactual(
    study: StudyArgument,
    engine_for: EngineFor,
    queries: Annotated[int, typer.Option(min=1, help="Number of generated queries.")] = 16,
    remove: Annotated[
        int | None,
        typer.Option(min=1, help="Images to remove. Default: a fifth of the training set.", show_default=False),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps. Default: the study's.", show_default=False)
    ] = None,
    precision: Annotated[
        PrecisionName | None, typer.Option(help="Training precision. Default: the study's.", show_default=False)
    ] = None,
    device: DeviceOption = "cpu",
    shard: ShardOption = None,
    as_json: JsonOption = False,
) -> None:
    """Retrain STUDY without each method's top images, regenerate, and measure how much images change; resumable."""
    from dtrak.app.removals import removal_title
    from dtrak.evaluation.counterfactual import counterfactual as measure
    from dtrak.evaluation.counterfactual import mean_with_interval
    from dtrak.methods.attributor import Attributor

    attributor = Attributor(StudyFolder(load_study(study)), device)
    count = remove or max(1, attributor.table.train_size // 5)
    chosen: Any = precision.value if precision else None
    name = attributor.folder.study.name
    share = None if shard is None else Share.parse(shard)
    alone = exclusive(attributor.folder.root / "retrained", f"the retraining of '{name}'")
    with (
        alone if share is None else contextlib.nullcontext(),
        progress(f"counterfactuals of {name}", None) as show,
    ):
        found = measure(
            attributor, queries, count, engine_for(device), steps, chosen,
            lambda done, total: show(done, "steps", total), share,
        )  # fmt: skip
    if found is None:
        errors.print(f"Shard {shard} is done. After all shards, run the same command without --shard to measure.")
        return
    if as_json:
        print(json.dumps({"pairs": [asdict(pair) for pair in found.pairs], "behind": found.behind}, indent=2))
        return
    print(f"{count} of {attributor.table.train_size} images removed; means over {len(found.queries)} queries.")
    print(f"{'removed':34}{'pixel distance, ℓ2':>18}{'95 % interval':>18}{'embedding cosine':>18}{'95 % interval':>18}")
    for kind in found.kinds:
        pairs = found.of(kind)
        cells = f"{removal_title(kind):34}"
        for values in ([p.distance for p in pairs], [p.cosine for p in pairs]):
            mean, low, high = mean_with_interval(np.array(values))
            between = f"{low:.3f} to {high:.3f}"
            cells += f"{mean:18.3f}{between:>18}"
        print(cells)


@takes_engine
def removals(study: StudyArgument, engine_for: EngineFor, device: DeviceOption = "cpu") -> None:
    """Retrain STUDY without more and more of the sources of its example, for the slider on Home; resumable."""
    from dtrak.app.example import first_example
    from dtrak.evaluation.series import removal_series
    from dtrak.methods.attributor import Attributor

    attributor = Attributor(StudyFolder(load_study(study)), device)
    name = attributor.folder.study.name
    query, setting = first_example(attributor)
    alone = exclusive(attributor.folder.root / "retrained", f"the retraining of '{name}'")
    with alone, progress(f"removals of {name}", None) as show:
        found = removal_series(
            attributor, query, setting, engine_for(device), lambda done, total: show(done, "steps", total)
        )
    counts = ", ".join(str(one.removed) for one in found)
    errors.print(f"Retrained '{name}' without {counts} images. The next build shows it on Home.")
