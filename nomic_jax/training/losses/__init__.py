"""Losses: contrastive ones, distillation, and masked language modelling."""
