"""Training: one job a milestone, each continuing the one before."""


rule train_segment:
    input:
        unpack(samples),
        previous=previous_checkpoint,
        init_from=initial_checkpoint,
    output:
        checkpoint=ensure(
            "results/train/{experiment}/{layout}/seed{seed}/epoch_{epoch}.ckpt",
            non_empty=True,
        ),
        receipt=ensure(
            "results/train/{experiment}/{layout}/seed{seed}/epoch_{epoch}.json",
            non_empty=True,
        ),
    log:
        "logs/train_segment/{experiment}/{layout}/seed{seed}/epoch_{epoch}.log",
    benchmark:
        "benchmarks/train_segment/{experiment}/{layout}/seed{seed}/epoch_{epoch}.tsv"
    wildcard_constraints:
        layout=LAYOUT,
    conda:
        "../../envs/train.yaml"
    container:
        None
    threads: cores("train_segment", local=ranks)
    resources:
        **placed("train_segment"),
    params:
        # Not the number of epochs: asking for more must not start this segment again.
        definition=definition,
    script:
        "../scripts/train_segment.py"


# Waits for jobs that it submits itself, see millrace.launch.first_to_start.
use rule train_segment as train_race with:
    log:
        "logs/train_race/{experiment}/{layout}/seed{seed}/epoch_{epoch}.log",
    benchmark:
        "benchmarks/train_race/{experiment}/{layout}/seed{seed}/epoch_{epoch}.tsv"
    wildcard_constraints:
        layout=RACE,
    localrule: True
    threads: 1 if cluster else ranks
    resources:
        site=site,
        container=inside,
