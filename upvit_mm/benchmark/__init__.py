"""Measurements: complexity, latency, speed of rivals, worth of scores."""
