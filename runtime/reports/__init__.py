"""Reports: one HTML file that opens offline, of scores, of a fleet's check, of a model against labels."""
