"""Groundwater: raw files checked and put into one series, cut into patches or planes; neighbours."""

columns, units = dataset_block("variables"), dataset_block("units")
clip = dataset_block("clip_negative_concentration", default=False)
missing = dataset_block("missing")
in_parts = plan.data.datasets_in("feflow_csv", kind="series", in_parts=True)
# The file that says which nodes are masked, if some are to be.
masked_nodes = lambda wildcards: (
    f"results/data/{wildcards.dataset}/missing.h5"
    if (missing(wildcards) or {}).get("then") == "mask"
    else []
)


rule preprocess:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        series=ensure("results/data/{dataset}/series.h5", non_empty=True),
    log:
        "logs/preprocess/{dataset}.log",
    benchmark:
        "benchmarks/preprocess/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in("feflow_csv", kind="series"),
    conda:
        "../../envs/data.yaml"
    threads: cores("preprocess", local=2)
    resources:
        **placed("preprocess"),
    params:
        fingerprint=raw_fingerprint,
        # By name with their units, if the configuration gives any.
        variables=lambda w: (
            {name: units(w).get(name) for name in columns(w)}
            if units(w)
            else columns(w)
        ),
        forcings=dataset_block("forcings", default=[]),
        # With what no-data values mean, if the configuration says it.
        clip=lambda w: (
            {"clip": clip(w), "missing": missing(w)} if missing(w) else clip(w)
        ),
        split=dataset_block("split"),
    script:
        "../scripts/preprocess.py"


rule find_missing:
    input:
        # Its time means nothing, see `raw`.
        source=ancient(raw_source),
    output:
        nodes=ensure("results/data/{dataset}/parts/missing_{part}.h5", non_empty=True),
    log:
        "logs/find_missing/{dataset}/{part}.log",
    benchmark:
        "benchmarks/find_missing/{dataset}/{part}.tsv"
    wildcard_constraints:
        dataset=in_parts,
    conda:
        "../../envs/data.yaml"
    threads: cores("preprocess", local=2)
    resources:
        **placed("preprocess"),
    params:
        raw=of_part(plan.data.part_raw, "series"),
        share=not_compared(of_part(plan.data.share, "series")),
        variables=columns,
        units=units,
        missing=missing,
    script:
        "../scripts/find_missing.py"


rule gather_missing:
    input:
        parts=lambda wildcards: plan.data.part_files(
            wildcards.dataset, "series", "missing"
        ),
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        nodes=ensure("results/data/{dataset}/missing.h5", non_empty=True),
    log:
        "logs/gather_missing/{dataset}.log",
    benchmark:
        "benchmarks/gather_missing/{dataset}.tsv"
    wildcard_constraints:
        dataset=in_parts,
    conda:
        "../../envs/data.yaml"
    threads: cores("gather_samples")
    resources:
        **placed("gather_samples"),
    params:
        fingerprint=raw_fingerprint,
        variables=columns,
        units=units,
        missing=missing,
    script:
        "../scripts/gather_missing.py"


rule preprocess_part:
    input:
        # Its time means nothing, see `raw`.
        source=ancient(raw_source),
        # Which nodes are left out is known when all times were looked at.
        missing=masked_nodes,
    output:
        series=ensure("results/data/{dataset}/parts/series_{part}.h5", non_empty=True),
    log:
        "logs/preprocess_part/{dataset}/{part}.log",
    benchmark:
        "benchmarks/preprocess_part/{dataset}/{part}.tsv"
    wildcard_constraints:
        dataset=in_parts,
    conda:
        "../../envs/data.yaml"
    threads: cores("preprocess", local=2)
    resources:
        **placed("preprocess"),
    params:
        raw=of_part(plan.data.part_raw, "series"),
        share=not_compared(of_part(plan.data.share, "series")),
        variables=columns,
        units=units,
        forcings=dataset_block("forcings", default=[]),
        clip_negative_concentration=clip,
        missing=missing,
    script:
        "../scripts/preprocess_part.py"


rule gather_series:
    input:
        parts=lambda wildcards: plan.data.part_files(wildcards.dataset, "series"),
        missing=masked_nodes,
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        series=ensure("results/data/{dataset}/series.h5", non_empty=True),
    log:
        "logs/gather_series/{dataset}.log",
    benchmark:
        "benchmarks/gather_series/{dataset}.tsv"
    wildcard_constraints:
        dataset=in_parts,
    conda:
        "../../envs/data.yaml"
    threads: cores("gather_samples")
    resources:
        **placed("gather_samples"),
    params:
        fingerprint=raw_fingerprint,
        variables=columns,
        units=units,
        forcings=dataset_block("forcings", default=[]),
        clip_negative_concentration=clip,
        missing=missing,
        split=dataset_block("split"),
    script:
        "../scripts/gather_series.py"


rule extract_patches:
    input:
        series="results/data/{dataset}/series.h5",
    output:
        patches=ensure("results/data/{dataset}/patches.h5", non_empty=True),
        map=report(
            "results/data/{dataset}/patches.png",
            caption="../report/patches.rst",
            category="Data",
            labels={"dataset": "{dataset}", "figure": "patches"},
        ),
    log:
        "logs/extract_patches/{dataset}.log",
    benchmark:
        "benchmarks/extract_patches/{dataset}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_patches")
    resources:
        **placed("extract_patches"),
    params:
        patches=dataset_block("patches", default={}),
    script:
        "../scripts/extract_patches.py"


rule build_graph:
    input:
        patches="results/data/{dataset}/patches.h5",
    output:
        graph=ensure("results/data/{dataset}/graph_{geometry}.h5", non_empty=True),
    log:
        "logs/build_graph/{dataset}/{geometry}.log",
    benchmark:
        "benchmarks/build_graph/{dataset}/{geometry}.tsv"
    conda:
        "../../envs/data.yaml"
    threads: cores("build_graph")
    resources:
        **placed("build_graph"),
    script:
        "../scripts/build_graph.py"


rule extract_planes:
    input:
        series="results/data/{dataset}/series.h5",
    output:
        planes=ensure("results/data/{dataset}/planes.h5", non_empty=True),
    log:
        "logs/extract_planes/{dataset}.log",
    benchmark:
        "benchmarks/extract_planes/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.data.datasets_in("feflow_csv"),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_planes")
    resources:
        **placed("extract_planes"),
    params:
        planes=dataset_block("planes", default={}),
    script:
        "../scripts/extract_planes.py"
