"""What is reported: costs, times, pictures and tables."""
