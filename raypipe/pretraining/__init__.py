"""Self-supervised pretraining: objectives, augmentations, encoders."""
