"""Raw data and samples of all systems, made whole or in parts: what takes one step needs no rule of its own."""


rule simulate_raw:
    output:
        directory("results/data/{dataset}/raw"),
    log:
        "logs/simulate_raw/{dataset}.log",
    benchmark:
        "benchmarks/simulate_raw/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.simulated(),
    conda:
        lambda wildcards: f"../../envs/{plan.data.simulator_environment(wildcards.dataset)}.yaml"
    threads: cores("simulate_raw")
    resources:
        **placed("simulate_raw"),
    params:
        demo=dataset_block("demo", default={}),
    script:
        "../scripts/simulate_raw.py"


rule extract_samples:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        samples=ensure("results/data/{dataset}/{kind}.h5", non_empty=True),
    log:
        "logs/extract_samples/{dataset}/{kind}.log",
    benchmark:
        "benchmarks/extract_samples/{dataset}/{kind}.tsv"
    wildcard_constraints:
        dataset=plan.data.extracted(),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_{kind}")
    resources:
        **placed("extract_{kind}"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run; the two after it are.
        section=lambda wildcards, output: plan.data.section(
            wildcards.dataset, wildcards.kind
        ),
        variables=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[0],
        settings=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[1],
        split=dataset_block("split"),
    script:
        "../scripts/extract_samples.py"


rule extract_part:
    input:
        # Its time means nothing, see `raw`.
        source=ancient(raw_source),
    output:
        samples=ensure("results/data/{dataset}/parts/{kind}_{part}.h5", non_empty=True),
    log:
        "logs/extract_part/{dataset}/{kind}_{part}.log",
    benchmark:
        "benchmarks/extract_part/{dataset}/{kind}_{part}.tsv"
    wildcard_constraints:
        dataset=plan.data.parted(),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_{kind}")
    resources:
        **placed("extract_{kind}"),
    params:
        raw=of_part(plan.data.part_raw),
        share=not_compared(of_part(plan.data.share)),
        # With `output` as argument it is not compared with the last run; the two after it are.
        section=lambda wildcards, output: plan.data.section(
            wildcards.dataset, wildcards.kind
        ),
        variables=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[0],
        settings=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[1],
    script:
        "../scripts/extract_part.py"


rule gather_samples:
    input:
        parts=by(plan.data.part_files, "dataset", "kind"),
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        samples=ensure("results/data/{dataset}/{kind}.h5", non_empty=True),
    log:
        "logs/gather_samples/{dataset}/{kind}.log",
    benchmark:
        "benchmarks/gather_samples/{dataset}/{kind}.tsv"
    wildcard_constraints:
        dataset=plan.data.extracted(in_parts=True),
    conda:
        "../../envs/data.yaml"
    threads: cores("gather_samples")
    resources:
        **placed("gather_samples"),
    params:
        fingerprint=raw_fingerprint,
        # With `output` as argument it is not compared with the last run; the two after it are.
        section=lambda wildcards, output: plan.data.section(
            wildcards.dataset, wildcards.kind
        ),
        variables=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[0],
        settings=lambda wildcards: plan.data.compared(
            wildcards.dataset, wildcards.kind
        )[1],
        split=dataset_block("split"),
    script:
        "../scripts/gather_samples.py"
