"""Recorded traffic to tokens: build vocabularies, tokenise once; whole, or in parts."""

from millrace.systems.traffic.system import FORMATS

raw_traffic = configured(lambda dataset: plan.data.readable(dataset)[0], "dataset")


rule build_vocabulary:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_traffic),
    output:
        vocabulary=ensure("results/data/{dataset}/vocabulary.h5", non_empty=True),
        plates=report(
            "results/data/{dataset}/vocabulary.png",
            caption="../report/vocabulary.rst",
            category="Data",
            labels={"dataset": "{dataset}", "figure": "vocabularies"},
        ),
    log:
        "logs/build_vocabulary/{dataset}.log",
    benchmark:
        "benchmarks/build_vocabulary/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios"),
    conda:
        "../../envs/data.yaml"
    threads: cores("build_vocabulary")
    resources:
        **placed("build_vocabulary"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/build_vocabulary.py"


rule sample_motion:
    input:
        # Its time means nothing, see `raw`.
        source=ancient(raw_traffic),
    output:
        sample=ensure("results/data/{dataset}/parts/motion_{part}.h5", non_empty=True),
    log:
        "logs/sample_motion/{dataset}/{part}.log",
    benchmark:
        "benchmarks/sample_motion/{dataset}/{part}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios", in_parts=True),
    conda:
        "../../envs/data.yaml"
    threads: cores("build_vocabulary")
    resources:
        **placed("build_vocabulary"),
    params:
        raw=of_part(plan.data.part_raw, "scenarios"),
        share=not_compared(of_part(plan.data.share, "scenarios")),
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/sample_motion.py"


rule gather_vocabulary:
    input:
        parts=lambda wildcards: plan.data.part_files(
            wildcards.dataset, "scenarios", "motion"
        ),
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_traffic),
    output:
        vocabulary=ensure("results/data/{dataset}/vocabulary.h5", non_empty=True),
        plates=report(
            "results/data/{dataset}/vocabulary.png",
            caption="../report/vocabulary.rst",
            category="Data",
            labels={"dataset": "{dataset}", "figure": "vocabularies"},
        ),
    log:
        "logs/gather_vocabulary/{dataset}.log",
    benchmark:
        "benchmarks/gather_vocabulary/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios", in_parts=True),
    conda:
        "../../envs/data.yaml"
    threads: cores("build_vocabulary")
    resources:
        **placed("build_vocabulary"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/gather_vocabulary.py"


rule tokenise:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_traffic),
        vocabulary="results/data/{dataset}/vocabulary.h5",
    output:
        scenarios=ensure("results/data/{dataset}/scenarios.h5", non_empty=True),
    log:
        "logs/tokenise/{dataset}.log",
    benchmark:
        "benchmarks/tokenise/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios"),
    conda:
        "../../envs/data.yaml"
    threads: cores("tokenise")
    resources:
        **placed("tokenise"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/tokenise.py"


rule tokenise_part:
    input:
        # Its time means nothing, see `raw`.
        source=ancient(raw_traffic),
        vocabulary="results/data/{dataset}/vocabulary.h5",
    output:
        scenarios=ensure(
            "results/data/{dataset}/parts/scenarios_{part}.h5", non_empty=True
        ),
    log:
        "logs/tokenise_part/{dataset}/{part}.log",
    benchmark:
        "benchmarks/tokenise_part/{dataset}/{part}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios", in_parts=True),
    conda:
        "../../envs/data.yaml"
    threads: cores("tokenise")
    resources:
        **placed("tokenise"),
    params:
        raw=of_part(plan.data.part_raw, "scenarios"),
        share=not_compared(of_part(plan.data.share, "scenarios")),
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/tokenise_part.py"


rule gather_scenarios:
    input:
        parts=lambda wildcards: plan.data.part_files(wildcards.dataset, "scenarios"),
        vocabulary="results/data/{dataset}/vocabulary.h5",
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_traffic),
    output:
        scenarios=ensure("results/data/{dataset}/scenarios.h5", non_empty=True),
    log:
        "logs/gather_scenarios/{dataset}.log",
    benchmark:
        "benchmarks/gather_scenarios/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in(*FORMATS, kind="scenarios", in_parts=True),
    conda:
        "../../envs/data.yaml"
    threads: cores("gather_samples")
    resources:
        **placed("gather_samples"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run.
        format=lambda wildcards, output: plan.data.readable(wildcards.dataset)[1],
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/gather_scenarios.py"
