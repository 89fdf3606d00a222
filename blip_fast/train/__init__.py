"""Pretraining and finetuning: objectives, data, sharding, checkpoints and the loop."""
