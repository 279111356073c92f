"""What `lfads_torch.run_model` is made of: configuration, parts, run folder, resuming."""
