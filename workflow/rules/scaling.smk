"""The scaling study: short timed runs of the real training step, then one report over all of them."""


rule measure_throughput:
    input:
        unpack(samples),
        init_from=measured_checkpoint,
    output:
        run=ensure(
            "results/scaling/{experiment}/{layout}/{mode}/run_{repeat}.json",
            non_empty=True,
        ),
    log:
        "logs/measure_throughput/{experiment}/{layout}/{mode}/run_{repeat}.log",
    benchmark:
        "benchmarks/measure_throughput/{experiment}/{layout}/{mode}/run_{repeat}.tsv"
    wildcard_constraints:
        layout=LAYOUT,
    conda:
        "../../envs/train.yaml"
    container:
        None
    threads: cores("measure_throughput", local=all_cores)
    resources:
        **placed("measure_throughput"),
    params:
        definition=definition,
        steps=plan.scaling.steps,
    script:
        "../scripts/measure_throughput.py"


rule analyse_scaling:
    input:
        runs=plan.scaling_runs(),
    output:
        html=report(
            "results/scaling/report.html",
            caption="../report/scaling.rst",
            category="Scaling",
            labels={"figure": "scaling report"},
        ),
        csv="results/scaling/report.csv",
        json="results/scaling/report.json",
        extrap="results/scaling/extrap.txt",
        badges="results/scaling/table.md",
        figures=directory("results/scaling/figures"),
    log:
        "logs/analyse_scaling.log",
    benchmark:
        "benchmarks/analyse_scaling.tsv"
    localrule: True  # it takes seconds
    conda:
        "../../envs/report.yaml"
    params:
        settings=plan.scaling_settings(),
    script:
        "../scripts/analyse_scaling.py"
