"""Recorded traffic to tokens: convert, build vocabularies, tokenise once."""

from millrace.systems.traffic.system import ADAPTED

# Directory of tracks: simulated, the user's, or converted from another format.
tracks = lambda wildcards: (
    raw_source(wildcards)
    if plan.datasets[wildcards.dataset]["format"] == "tracks"
    else f"results/data/{wildcards.dataset}/tracks"
)


rule convert_tracks:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(raw_source),
    output:
        directory("results/data/{dataset}/tracks"),
    log:
        "logs/convert_tracks/{dataset}.log",
    benchmark:
        "benchmarks/convert_tracks/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in(*ADAPTED),
    conda:
        "../../envs/data.yaml"
    threads: cores("convert_tracks")
    resources:
        **placed("convert_tracks"),
    params:
        fingerprint=raw_fingerprint,
        format=dataset_block("format"),
    script:
        "../scripts/convert_tracks.py"


rule build_vocabulary:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(tracks),
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
        dataset=plan.datasets_in("tracks", *ADAPTED),
    conda:
        "../../envs/data.yaml"
    threads: cores("build_vocabulary")
    resources:
        **placed("build_vocabulary"),
    params:
        fingerprint=raw_fingerprint,
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/build_vocabulary.py"


rule tokenise:
    input:
        # Its time means nothing, see raw_fingerprint.
        source=ancient(tracks),
        vocabulary="results/data/{dataset}/vocabulary.h5",
    output:
        scenarios=ensure("results/data/{dataset}/scenarios.h5", non_empty=True),
    log:
        "logs/tokenise/{dataset}.log",
    benchmark:
        "benchmarks/tokenise/{dataset}.tsv"
    wildcard_constraints:
        dataset=plan.datasets_in("tracks", *ADAPTED),
    conda:
        "../../envs/data.yaml"
    threads: cores("tokenise")
    resources:
        **placed("tokenise"),
    params:
        fingerprint=raw_fingerprint,
        tokens=dataset_block("tokens", default={}),
    script:
        "../scripts/tokenise.py"
