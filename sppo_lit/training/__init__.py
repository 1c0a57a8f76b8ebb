"""Training: LightningModules, the DataModule and their parts."""
