"""The search: named searches, Optuna's sampler, Ray's ASHA and trainable, and the command line."""
