"""Scheduling: who gets the cluster's devices, training runs or serving replicas."""
