"""Results of detections: thresholds, regions, heatmaps, stored rows, the report."""
