"""Tables and figures over all runs, for `snakemake --report`."""


rule summarise_skill:
    input:
        metrics=with_chosen(plan.metrics),
        ensembles=with_chosen(plan.ensembles),
        # So that no sweep waits for another one to have chosen.
        sweeps=plan.sweep_tables(),
    output:
        table=report(
            "results/report/skill.html",
            caption="../report/skill.rst",
            category="Summary",
            labels={"figure": "table of test skill"},
        ),
        csv="results/report/skill.csv",
        figure=report(
            "results/report/skill.png",
            caption="../report/skill.rst",
            category="Summary",
            labels={"figure": "test skill"},
        ),
    log:
        "logs/summarise_skill.log",
    benchmark:
        "benchmarks/summarise_skill.tsv"
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    params:
        # Of runs that are not asked for. `...` is not compared with the last time, so that tables of earlier
        # versions stay.
        others=plan.other_metrics() or ...,
        # With `output` as argument it is not compared either: raw files may be archived.
        datasets=lambda wildcards, output: plan.data.raw_folders(),
        benchmarks=lambda wildcards, output: plan.benchmarks(),
    script:
        "../scripts/summarise_skill.py"


rule compare_runs:
    input:
        unpack(compared_runs),
    output:
        page=report(
            "results/compare/{comparison}.html",
            caption="../report/comparison.rst",
            category="Comparisons",
            labels={"comparison": "{comparison}"},
        ),
        record="results/compare/{comparison}.json",
    log:
        "logs/compare_runs/{comparison}.log",
    benchmark:
        "benchmarks/compare_runs/{comparison}.tsv"
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    script:
        "../scripts/compare_runs.py"
