"""Groundwater: raw files checked and put into one series, cut into patches or planes; neighbours."""

columns, units = dataset_block("variables"), dataset_block("units")
clip = dataset_block("clip_negative_concentration", default=False)
missing = dataset_block("missing")


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
        dataset=plan.datasets_in("feflow_csv"),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_planes")
    resources:
        **placed("extract_planes"),
    params:
        planes=dataset_block("planes", default={}),
    script:
        "../scripts/extract_planes.py"
