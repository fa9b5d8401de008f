"""Scores to a verdict: maps, thresholds, regions, heatmaps."""
