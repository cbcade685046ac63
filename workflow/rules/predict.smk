"""Predictions of trained models for raw files that no training has seen."""


rule predict:
    input:
        unpack(predicting_checkpoint),
        # Its time means nothing, see prediction_fingerprint.
        source=ancient(prediction_source),
    output:
        predictions=ensure(
            "results/predict/{prediction}/predictions.nc", non_empty=True
        ),
        metrics=ensure("results/predict/{prediction}/metrics.json", non_empty=True),
        figure=report(
            "results/predict/{prediction}/error_over_time.png",
            caption="../report/prediction.rst",
            category="Predictions",
            labels={"prediction": "{prediction}", "figure": "error over time"},
        ),
    log:
        "logs/predict/{prediction}.log",
    benchmark:
        "benchmarks/predict/{prediction}.tsv"
    conda:
        "../../envs/evaluate.yaml"
    threads: cores("predict", local=2)
    resources:
        **placed("predict"),
    params:
        fingerprint=prediction_fingerprint,
    script:
        "../scripts/predict.py"
