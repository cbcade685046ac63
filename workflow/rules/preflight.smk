"""Checks of layouts inside jobs like those of the training, before days of training go there."""


rule preflight_layout:
    output:
        ensure("results/preflight/{layout}.json", non_empty=True),
    log:
        "logs/preflight_layout/{layout}.log",
    benchmark:
        "benchmarks/preflight_layout/{layout}.tsv"
    conda:
        "../../envs/train.yaml"
    container:
        None
    threads: cores("preflight_layout", local=ranks)
    resources:
        **placed("preflight_layout"),
    script:
        "../scripts/preflight_layout.py"
