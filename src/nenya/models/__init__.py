"""The contrastive model: network, loss, schedule, LightningModule, checkpoints."""
