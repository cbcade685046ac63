"""Rule train_segment: train to the next milestone."""

import sys

from millrace.jobs import job
from millrace.launch import launch
from millrace.plan import EXECUTION
from millrace.training.request import Request

wildcards = snakemake.wildcards
with job(snakemake.log[0]):
    # From the configuration, not a parameter of the rule: changing it must not start a run again.
    train = snakemake.config["experiments"][wildcards.experiment]["train"]
    request = Request(
        experiment=wildcards.experiment,
        layout=wildcards.layout,
        seed=int(wildcards.seed),
        target_epoch=int(wildcards.epoch),
        definition=snakemake.params.definition,
        files={
            role: files if isinstance(files, str) else list(files)
            for role, files in snakemake.input.items()
            if role not in ("previous", "init_from")
        },
        runs=f"runs/{wildcards.experiment}/{wildcards.layout}/seed{wildcards.seed}",
        checkpoint=snakemake.output.checkpoint,
        receipt=snakemake.output.receipt,
        save_every=train.get("save_every", 1),
        execution={k: v for k, v in train.items() if k in EXECUTION},
        previous=str(snakemake.input.previous) or None,
    )
    sys.exit(launch(request, cpus=snakemake.threads))
