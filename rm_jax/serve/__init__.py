"""Scoring with a trained model: in process now, over HTTP later."""
