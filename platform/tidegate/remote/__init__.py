"""A cluster reached through Ray's Jobs API: what a driver would do there, a job does."""
