"""Weather in NetCDF, Zarr or CSV to states on one grid: simulate or read, check."""


rule simulate_weather:
    output:
        directory("results/data/{dataset}/raw"),
    log:
        "logs/simulate_weather/{dataset}.log",
    benchmark:
        "benchmarks/simulate_weather/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in("weather"),
    conda:
        "../../envs/data.yaml"
    threads: cores("simulate_weather")
    resources:
        **placed("simulate_weather"),
    params:
        demo=dataset_block("demo", default={}),
    script:
        "../scripts/simulate_weather.py"


rule extract_weather:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        weather=ensure("results/data/{dataset}/weather.h5", non_empty=True),
    log:
        "logs/extract_weather/{dataset}.log",
    benchmark:
        "benchmarks/extract_weather/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in("weather"),
    conda:
        "../../envs/data.yaml"
    threads: cores("extract_weather")
    resources:
        **placed("extract_weather"),
    params:
        fingerprint=raw_fingerprint,
        weather=dataset_block("weather", default={}),
        split=dataset_block("split"),
    script:
        "../scripts/extract_weather.py"
