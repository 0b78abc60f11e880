"""The columns of a result row, declared once.

The training loop emits one row per epoch; Ray stores it; `analysis` reads it back. Nothing here needs PyTorch, so that
`analysis` can import it alone.
"""

from typing import Any, Final

Row = dict[str, Any]  # a number, a truth value or a text by column; `by_replica` alone holds lists

COLUMNS: Final[dict[str, str]] = {
    # Progress
    "epoch": "epochs finished, counted from 1",
    "images_seen": "real training images used so far (whole batches only) by each replica",
    # Training, means over the epoch's batches, and, like quality, over replicas
    "generator_loss": "-log D(G(z)), nats",
    "discriminator_loss": "-log D(x) - log(1 - D(G(z))), nats",
    "d_real": "mean D(x): probability given to real images",
    "d_fake": "mean D(G(z)) before D's update: probability given to generated images",
    # Quality of generated images, on the features and predictions of the yardstick
    "fid": "Fréchet distance to the evaluation split on yardstick features; lower is better",
    "kid": "unbiased kernel distance to the evaluation split; lower is better, may be slightly negative",
    "sample_precision": "share of generated images inside the real manifold, 0 to 1",
    "sample_recall": "share of real images inside the generated manifold, 0 to 1",
    "sample_density": "mean number of real neighbourhoods around a generated image, over k; real data gets about 1",
    "sample_coverage": "share of real neighbourhoods that hold a generated image, 0 to 1",
    "classifier_score": "exp of the mean KL from the predicted digit to its marginal, 1 to 10; higher is better",
    "confident_share": "share of generated images of whose digit the classifier is sure (probability at least 0.9), 0 to 1",
    "sharpness": "high-frequency energy of generated over that of real images; below 1 is blurred, above is noisy",
    "digits_covered": "digits that make up at least 1 % of the generated images, 0 to 10; the smallest over replicas",
    "digit_kl": "KL of the generated digit histogram from uniform, nats; 0 is best",
    "collapsed": "true if fewer than half of the digits appear or the samples nearly repeat one another, in any replica",
    "path_length": "mean length, in feature space, of great circles between noises; less is a smoother transition",
    "fid_std": "sample standard deviation of fid over replicas; 0 with one",
    "by_replica": "only with several replicas: each replica's training and quality columns, lists in the order of seeds",
    # Cost
    "seconds_train": "seconds spent training this epoch, all replicas",
    "seconds_eval": "seconds spent evaluating this epoch, all replicas",
    "images_per_second": "training images, of all replicas, per second of seconds_train",
    "peak_memory_bytes": "peak while training so far: CUDA memory allocated, or the process's resident set on the CPU",
    # Protocol: the conditions under which the numbers above hold
    "eval_split": "the split compared against: validation or test",
    "eval_samples": "number of generated images, and of real images, that the metrics use",
    "eval_seed": "seed of the fixed evaluation noise",
    "fid_real": "the fid that as many real training images get: the floor of fid",
    "extractor": "first 12 hex digits of the yardstick's sha256",
    "device": "what the epoch ran on",
    "threads": "CPU threads that trained",
}

METRIC: Final = "fid"
"""The validation metric that ranks trials and epochs; lower is better."""
