"""Training: LightningModules, the DataModule and the parts they are made of."""
