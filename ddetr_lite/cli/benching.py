"""`ddetr-lite bench`: what is claimed about speed and accuracy, measured by anyone."""

from ddetr_lite.cli.parsing import Mistake, at_least, parse, take_positional

STUDIES = (
    "convergence",
    "convergence-adamw",
    "convergence-cells",
    "table1",
    "table1-cpu",
    "lead-cpu",
    "table2",
    "table2-cpu",
    "coco-mini",
    "coco-mini-cpu",
)
SPEED = ("msda", "step", "input")


def bench(words: list[str]) -> None:
    """Measure what is claimed: speed (`bench msda`, `step`, `input`), accuracy (`bench convergence`, `table1`, ...)."""
    command = " ".join(["ddetr-lite bench", *words])
    what, words = take_positional(words, "WHAT", f"one of {', '.join(SPEED + STUDIES)}", "bench msda")
    if what in STUDIES:
        from ddetr_lite.cli.bench_study import bench_study

        bench_study(what, words, command)
        return
    if what == "step":
        from ddetr_lite.benchmarks import step

        chosen = parse(step.StepOptions, words, "ddetr-lite bench step")
        # Fewer layers `transformers` cannot build, nor smaller pictures our levels.
        at_least(chosen, layers=2, size=64, batch=1, objects=0, queries=1, repeats=1)
        step.run(chosen, command)
        return
    if what == "input":
        from ddetr_lite.benchmarks import input as pictures

        pictures.run(parse(pictures.InputOptions, words, "ddetr-lite bench input"), command)
        return
    if what != "msda":
        raise Mistake(f"bench {what!r} is unknown: choose one of {', '.join(SPEED + STUDIES)}")
    from ddetr_lite.benchmarks import msda

    options = parse(msda.MsdaOptions, words, "ddetr-lite bench msda")
    result = msda.run(options, command)
    if options.out is not None:
        from ddetr_lite.plots import grouped_bars
        from ddetr_lite.plots.style import png

        title = "Forward and backward: times as fast as the form with grid_sample"
        options.out.with_suffix(".png").write_bytes(png(grouped_bars(msda.ratios(result), title, line=1.0)))
        print(f"{options.out.with_suffix('.json')} and .png are written.")
