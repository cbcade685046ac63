"""ICON output to blocks: simulate or read, check, put into nested order, average."""


rule simulate_climate:
    output:
        directory("results/data/{dataset}/raw"),
    log:
        "logs/simulate_climate/{dataset}.log",
    benchmark:
        "benchmarks/simulate_climate/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in("icon"),
    conda:
        "../../envs/data.yaml"
    threads: cores("simulate_climate")
    resources:
        **placed("simulate_climate"),
    params:
        demo=dataset_block("demo", default={}),
    script:
        "../scripts/simulate_climate.py"


rule extract_blocks:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        blocks=ensure("results/data/{dataset}/blocks.h5", non_empty=True),
    log:
        "logs/extract_blocks/{dataset}.log",
    benchmark:
        "benchmarks/extract_blocks/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in("icon"),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_blocks")
    resources:
        **placed("extract_blocks"),
    params:
        fingerprint=raw_fingerprint,
        variables=dataset_block("variables"),
        blocks=dataset_block("blocks", default={}),
        split=dataset_block("split"),
    script:
        "../scripts/extract_blocks.py"
